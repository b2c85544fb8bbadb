// Arithmetic of the 3D viewer: rotations, colours of weights and of stretched edges.
"use strict";

// Rotation by a vector (axis times radians) as a row-major 3 × 3 matrix: Rodrigues' formula.
function rotation(x, y, z) {
  const angle = Math.hypot(x, y, z);
  const a = angle > 1e-9 ? Math.sin(angle) / angle : 1;
  const b = angle > 1e-9 ? (1 - Math.cos(angle)) / (angle * angle) : 0.5;
  return [
    1 - b * (y * y + z * z), b * x * y - a * z, b * x * z + a * y,
    b * x * y + a * z, 1 - b * (x * x + z * z), b * y * z - a * x,
    b * x * z - a * y, b * y * z + a * x, 1 - b * (x * x + y * y),
  ];
}

function mix(a, b, share) {
  return [0, 1, 2].map((i) => a[i] + (b[i] - a[i]) * share);
}

// Green for no stretch, over yellow, to red for edges of twice their length and more.
function stretchColour(ratio) {
  const share = Math.min(1, Math.max(0, ratio - 1));
  const green = [0.1, 0.5, 0.28], yellow = [0.95, 0.72, 0.1], red = [0.75, 0.04, 0.03];
  return share < 0.5 ? mix(green, yellow, share * 2) : mix(yellow, red, share * 2 - 1);
}

function stretches(rig) {
  const worst = new Float32Array(rig.count).fill(1);
  const length = (array, a, b) =>
    Math.hypot(array[3 * a] - array[3 * b], array[3 * a + 1] - array[3 * b + 1], array[3 * a + 2] - array[3 * b + 2]);
  for (let f = 0; f < rig.faces.length; f += 3)
    for (let k = 0; k < 3; k++) {
      const a = rig.faces[f + k], b = rig.faces[f + ((k + 1) % 3)];
      const ratio = length(rig.positions.array, a, b) / (length(rig.rest, a, b) + 1e-6);
      if (ratio > worst[a]) worst[a] = ratio;
      if (ratio > worst[b]) worst[b] = ratio;
    }
  return worst;
}

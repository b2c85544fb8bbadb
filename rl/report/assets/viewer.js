// The 3D viewer: rigs of one mesh side by side in one canvas, posed by linear blend skinning on the CPU.
"use strict";

/* exported startViewer */
function startViewer(root, data, buffer) {
  const T = THREE;
  const CLAY = [0.62, 0.65, 0.68];
  const TYPES = { Uint8Array, Uint16Array, Int16Array, Uint32Array, Float32Array };
  const read = ([type, offset, length]) => new TYPES[type](buffer, offset, length);
  const several = data.runs.length > 1;
  const state = { mesh: 0, colours: "bones", pose: 0, degrees: 0, skeleton: true, stage: null, bone: null };

  // The end of the slider; a recorded pose is whole there.
  const MOST_DEGREES = Math.max(90, ...data.rigs.flatMap((row) => row.poseDegrees || []));

  // ------------------------------------------------------------------ rigs

  function boneColour(index) {
    // Steps of the golden angle keep neighbours in the list apart.
    const hue = ((index * 137.508 + 205) % 360) / 360;
    return new T.Color().setHSL(hue, 0.62, index % 2 ? 0.6 : 0.5, "srgb").toArray();
  }

  // A rig on its mesh: rest data, and the arrays that a pose or a choice of colours rewrites.
  function makeRig(row) {
    const mesh = data.meshes[row.mesh];
    const packed = read(mesh.positions);
    const rest = Float32Array.from(packed, (value) => value / 32767);
    const count = rest.length / 3;
    const geometry = new T.BufferGeometry();
    const positions = new T.BufferAttribute(rest.slice(), 3).setUsage(T.DynamicDrawUsage);
    const colours = new T.BufferAttribute(new Float32Array(rest.length), 3);
    geometry.setAttribute("position", positions).setAttribute("color", colours);
    const faces = read(mesh.faces);
    geometry.setIndex(new T.BufferAttribute(faces, 1));
    const rig = { row, rest, count, faces, geometry, positions, colours, joints: 0, selected: -1 };
    if (row.joints) {
      Object.assign(rig, {
        heads: read(row.joints),
        parents: row.parents,
        joints: row.parents.length,
        influences: read(row.influences),
        weights: read(row.weights),
        poses: read(row.poses),
        palette: row.parents.map((_, joint) => boneColour(joint)),
        posed: new Float32Array(row.parents.length * 12),
        places: new Float32Array(row.parents.length * 3),
      });
    }
    return rig;
  }

  // The slider's place at which a rig stands as it was scored; undefined if the rig has no such pose.
  function degreesOf(row) {
    const degrees = row.poseDegrees[state.pose];
    return degrees === null ? MOST_DEGREES : degrees;
  }

  // The rotation vector of a joint: the reward's pose, scaled by the slider, or a turn of the chosen joint.
  function turn(rig, joint) {
    if (typeof state.pose === "string") {
      if (joint !== rig.selected) return [0, 0, 0];
      const angle = (state.degrees * Math.PI) / 180;
      return ["x", "y", "z"].map((axis) => (axis === state.pose ? angle : 0));
    }
    const whole = degreesOf(rig.row);
    if (!whole) return [0, 0, 0];
    const scale = state.degrees / whole;
    const at = (state.pose * rig.joints + joint) * 3;
    return [0, 1, 2].map((axis) => rig.poses[at + axis] * scale);
  }

  // Posed joints and vertices. G_j = G_parent · T(h_j - h_parent) · R_j; a vertex moves by the weighted sum of
  // G_j · T(-h_j). `posed` has these as rows of [rotation | translation].
  function pose(rig) {
    const { heads, parents, posed, places, rest, influences, weights, count } = rig;
    const out = rig.positions.array;
    const frames = [];
    for (let j = 0; j < rig.joints; j++) {
      const own = rotation(...turn(rig, j));
      const up = parents[j];
      const h = [heads[3 * j], heads[3 * j + 1], heads[3 * j + 2]];
      let r = own;
      let t = h;
      if (up >= 0) {
        const [pr, pt] = frames[up];
        const d = [0, 1, 2].map((axis) => h[axis] - heads[3 * up + axis]);
        t = [0, 1, 2].map((i) => pr[3 * i] * d[0] + pr[3 * i + 1] * d[1] + pr[3 * i + 2] * d[2] + pt[i]);
        r = new Array(9);
        for (let i = 0; i < 3; i++)
          for (let k = 0; k < 3; k++)
            r[3 * i + k] = pr[3 * i] * own[k] + pr[3 * i + 1] * own[3 + k] + pr[3 * i + 2] * own[6 + k];
      }
      frames.push([r, t]);
      for (let i = 0; i < 3; i++) {
        places[3 * j + i] = t[i];
        for (let k = 0; k < 3; k++) posed[12 * j + 4 * i + k] = r[3 * i + k];
        posed[12 * j + 4 * i + 3] = t[i] - r[3 * i] * h[0] - r[3 * i + 1] * h[1] - r[3 * i + 2] * h[2];
      }
    }
    for (let v = 0; v < count; v++) {
      const x = rest[3 * v], y = rest[3 * v + 1], z = rest[3 * v + 2];
      let px = 0, py = 0, pz = 0;
      for (let k = 0; k < 4; k++) {
        const w = weights[k * count + v] / 255;
        if (!w) continue;
        const m = influences[k * count + v] * 12;
        px += w * (posed[m] * x + posed[m + 1] * y + posed[m + 2] * z + posed[m + 3]);
        py += w * (posed[m + 4] * x + posed[m + 5] * y + posed[m + 6] * z + posed[m + 7]);
        pz += w * (posed[m + 8] * x + posed[m + 9] * y + posed[m + 10] * z + posed[m + 11]);
      }
      out[3 * v] = px;
      out[3 * v + 1] = py;
      out[3 * v + 2] = pz;
    }
    rig.positions.needsUpdate = true;
  }

  function paint(rig) {
    const out = rig.colours.array;
    const { influences, weights, count } = rig;
    const worst = state.colours === "stretch" && rig.joints ? stretches(rig) : null;
    for (let v = 0; v < count; v++) {
      let colour = CLAY;
      if (worst) colour = stretchColour(worst[v]);
      else if (rig.joints && state.colours === "bones") {
        colour = [0, 0, 0];
        for (let k = 0; k < 4; k++) {
          const own = rig.palette[influences[k * count + v]];
          for (let i = 0; i < 3; i++) colour[i] += (own[i] * weights[k * count + v]) / 255;
        }
      } else if (rig.joints && state.colours === "one") {
        let share = 0;
        for (let k = 0; k < 4; k++)
          if (influences[k * count + v] === rig.selected) share += weights[k * count + v] / 255;
        colour = share < 0.5 ? mix(CLAY, [0.95, 0.6, 0.1], share * 2) : mix([0.95, 0.6, 0.1], [0.8, 0.03, 0.05], share * 2 - 1);
      }
      out[3 * v] = colour[0];
      out[3 * v + 1] = colour[1];
      out[3 * v + 2] = colour[2];
    }
    rig.colours.needsUpdate = true;
  }

  // ------------------------------------------------------------------ drawing

  const element = (kind, values = {}, ...children) => {
    const made = Object.assign(document.createElement(kind), values);
    made.append(...children);
    return made;
  };
  const box = element("div", { className: "stagebox" });
  const bar = element("div", { className: "bar" });
  const bar2 = element("div", { className: "bar" });
  root.append(bar, bar2, box);
  const canvas = element("canvas");
  canvas.setAttribute("aria-label", "3D view of the rigs; drag to turn them");
  let renderer;
  try {
    renderer = new T.WebGLRenderer({ canvas, antialias: true, alpha: true, preserveDrawingBuffer: true });
  } catch {
    root.replaceChildren(element("p", { textContent: "The 3D viewer needs WebGL, which this browser does not offer." }));
    return null;
  }
  renderer.setClearColor(0, 0);
  renderer.setPixelRatio(Math.min(2, devicePixelRatio || 1));
  renderer.setScissorTest(true);
  const camera = new T.PerspectiveCamera(28, 1, 0.05, 40);
  const controls = new T.OrbitControls(camera, canvas);
  controls.enableZoom = false; // until the view is clicked, so that the page still scrolls
  controls.addEventListener("change", draw);
  canvas.addEventListener("pointerdown", () => { controls.enableZoom = true; });
  canvas.addEventListener("pointerleave", (event) => { if (!event.buttons) controls.enableZoom = false; });

  const ball = new T.SphereGeometry(1, 14, 10);
  const dart = new T.OctahedronGeometry(1, 0);
  const size = { width: 0, height: 0 };

  // Look at a mesh from the front and a little from the side, from where all of it is seen.
  function frameMesh(place) {
    const towards = new T.Vector3(0.43, 0.19, 0.88).normalize();
    const right = new T.Vector3(0, 1, 0).cross(towards).normalize();
    const up = towards.clone().cross(right);
    const packed = read(data.meshes[place].positions);
    const reach = Math.tan((camera.fov * Math.PI) / 360) * 0.66; // room for poses
    const vertex = new T.Vector3();
    let distance = 0;
    for (let v = 0; v < packed.length; v += 3) {
      vertex.fromArray(packed, v).divideScalar(32767);
      const aside = Math.max(Math.abs(vertex.dot(right)) * 1.06, Math.abs(vertex.dot(up)));
      distance = Math.max(distance, aside / reach + vertex.dot(towards));
    }
    controls.target.set(0, 0, 0);
    camera.position.copy(towards.multiplyScalar(distance));
    controls.update();
  }
  let cells = [];

  function makeScene(rig) {
    const scene = new T.Scene();
    scene.add(new T.HemisphereLight(0xffffff, 0x8a8f98, 1.9));
    const sun = new T.DirectionalLight(0xffffff, 1.7);
    sun.position.set(-2, 4, 5);
    scene.add(sun);
    const skin = new T.MeshLambertMaterial({ vertexColors: true, flatShading: true, side: 2 });
    scene.add(Object.assign(new T.Mesh(rig.geometry, skin), { frustumCulled: false }));
    if (rig.joints) {
      const over = { depthTest: false, transparent: true };
      const bones = new T.InstancedMesh(dart, new T.MeshBasicMaterial({ ...over, opacity: 0.88 }), rig.joints);
      const rims = new T.InstancedMesh(ball, new T.MeshBasicMaterial({ ...over, color: 0x111418 }), rig.joints);
      const balls = new T.InstancedMesh(ball, new T.MeshBasicMaterial(over), rig.joints);
      [bones, rims, balls].forEach((part, order) => {
        part.renderOrder = order + 1;
        part.frustumCulled = false;
        scene.add(part);
      });
      rig.skeleton = { bones, rims, balls };
    }
    return scene;
  }

  function placeSkeleton(rig) {
    const { bones, rims, balls } = rig.skeleton;
    const matrix = new T.Matrix4(), up = new T.Vector3(0, 1, 0), none = new T.Matrix4().makeScale(0, 0, 0);
    const at = (joint) => new T.Vector3().fromArray(rig.places, 3 * joint);
    const colour = new T.Color();
    for (let j = 0; j < rig.joints; j++) {
      const here = at(j), chosen = j === rig.selected, parent = rig.parents[j];
      const size = chosen ? 0.026 : 0.015;
      balls.setMatrixAt(j, matrix.makeScale(size, size, size).setPosition(here));
      rims.setMatrixAt(j, matrix.makeScale(size * 1.35, size * 1.35, size * 1.35).setPosition(here));
      const own = state.colours === "bones" ? rig.palette[j] : chosen ? [0.8, 0.03, 0.05] : [0.9, 0.88, 0.8];
      balls.setColorAt(j, colour.fromArray(own));
      const start = parent < 0 ? here : at(parent);
      const length = here.distanceTo(start);
      if (parent < 0 || length < 1e-6) {
        bones.setMatrixAt(j, none);
      } else {
        const turned = new T.Quaternion().setFromUnitVectors(up, here.clone().sub(start).normalize());
        const wide = Math.min(0.016, length * 0.16);
        bones.setMatrixAt(
          j, matrix.compose(start.clone().add(here).multiplyScalar(0.5), turned, new T.Vector3(wide, length / 2, wide)),
        );
      }
      const bone = parent < 0 ? own : state.colours === "bones" ? rig.palette[parent] : parent === rig.selected ? [0.8, 0.03, 0.05] : [0.95, 0.75, 0.2];
      bones.setColorAt(j, colour.fromArray(bone));
    }
    for (const part of [bones, rims, balls]) {
      part.visible = state.skeleton;
      part.instanceMatrix.needsUpdate = true;
      if (part.instanceColor) part.instanceColor.needsUpdate = true;
    }
  }

  let asked = false;
  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; drawNow(); });
  }

  function drawNow() {
    const outer = box.getBoundingClientRect();
    if (!outer.width || !outer.height) return;
    const width = Math.round(outer.width), height = Math.round(outer.height);
    if (size.width !== width || size.height !== height) {
      Object.assign(size, { width, height });
      renderer.setSize(width, height, false);
    }
    renderer.setScissor(0, 0, outer.width, outer.height);
    renderer.clear();
    for (const cell of cells) {
      if (!cell.rig) continue;
      const place = cell.space.getBoundingClientRect();
      const left = place.left - outer.left, bottom = outer.bottom - place.bottom;
      renderer.setViewport(left, bottom, place.width, place.height);
      renderer.setScissor(left, bottom, place.width, place.height);
      camera.aspect = place.width / place.height;
      camera.updateProjectionMatrix();
      renderer.render(cell.scene, camera);
    }
  }

  function update() {
    for (const { rig } of cells) {
      if (!rig) continue;
      if (rig.joints) pose(rig);
      paint(rig);
      if (rig.joints) placeSkeleton(rig);
    }
    draw();
  }

  // ------------------------------------------------------------------ cells

  const stages = [...new Set(data.rigs.map((row) => row.stage))];
  const order = ["before", "after", "ground truth"];
  stages.sort((a, b) => order.indexOf(a) - order.indexOf(b));
  // With several runs a column is a run at the chosen stage; the ground truth, which no run owns, comes last.
  state.stage = stages.includes("after") ? "after" : stages[0];

  function columns() {
    if (!several) return stages.map((stage) => ({ stage, run: null, title: stage }));
    const own = data.runs.map((name, run) => ({ stage: state.stage, run, title: name, small: state.stage }));
    return stages.includes("ground truth") ? [...own, { stage: "ground truth", run: null, title: "ground truth" }] : own;
  }

  function jointName(rig, joint) {
    const name = rig.row.names ? rig.row.names[joint] : `joint ${joint}`;
    return rig.parents[joint] < 0 ? `${name} (root)` : name;
  }

  function choose(rig, joint) {
    for (const cell of cells) {
      const other = cell.rig;
      if (!other || !other.joints) continue;
      if (joint < 0) other.selected = -1;
      else if (other === rig) other.selected = joint;
      else {
        // The joint of the other rig that is nearest to the chosen one.
        let best = Infinity;
        for (let j = 0; j < other.joints; j++) {
          const d = [0, 1, 2].reduce((sum, i) => sum + (other.heads[3 * j + i] - rig.heads[3 * joint + i]) ** 2, 0);
          if (d < best) { best = d; other.selected = j; }
        }
      }
      cell.select.value = String(other.selected);
    }
    if (joint >= 0 && state.colours === "bones") setColours("one");
    update();
  }

  function fill() {
    for (const { rig } of cells) if (rig) rig.geometry.dispose();
    const shown = columns();
    const across = Math.min(shown.length, box.clientWidth < 620 ? 2 : 4);
    const grid = element("div", { className: "cells" });
    grid.style.gridTemplateColumns = `repeat(${across}, minmax(0, 1fr))`;
    cells = shown.map((column) => {
      const row = data.rigs.find(
        (own) => own.mesh === state.mesh && own.stage === column.stage && (column.run === null || own.run === column.run),
      );
      const title = element("div", { className: "title" });
      const name = element("span", { textContent: column.title });
      if (column.run !== null) name.className = `run run${column.run % 8}`;
      title.append(name);
      if (column.small) title.append(element("small", { textContent: ` ${column.small}` }));
      const space = element("div", { className: "space" });
      const numbers = element("div", { className: "numbers" });
      const pick = element("div", { className: "pick" });
      const node = element("div", { className: "cell" }, title, space, numbers, pick);
      const cell = { column, node, space, rig: null, scene: null, select: null };
      grid.append(node);
      if (!row || !row.joints) {
        space.textContent = row && row.note ? row.note : "no rig of this mesh";
        return cell;
      }
      cell.rig = makeRig(row);
      cell.scene = makeScene(cell.rig);
      title.append(element("small", { textContent: `${column.small ? ", " : " "}${cell.rig.joints} joints` }));
      if (row.note) title.append(element("small", { textContent: `, ${row.note}` }));
      for (const [key, value] of Object.entries(row.numbers)) {
        const text = `${key} ${value.toFixed(3)}`;
        numbers.append(key === "total" ? element("b", { textContent: text }) : text, "  ");
      }
      const select = element("select", { title: "Choose a bone to see its weights" });
      select.setAttribute("aria-label", `bone of ${column.title}`);
      select.append(element("option", { value: "-1", textContent: "choose a bone…" }));
      cell.rig.parents.forEach((_, joint) =>
        select.append(element("option", { value: String(joint), textContent: jointName(cell.rig, joint) })));
      select.addEventListener("change", () => choose(cell.rig, Number(select.value)));
      cell.select = select;
      pick.append(select);
      return cell;
    });
    box.replaceChildren(grid, canvas);
    // Captions and menus lie above the canvas.
    grid.style.pointerEvents = "none";
    for (const select of grid.querySelectorAll("select")) select.style.pointerEvents = "auto";
    if (typeof state.pose === "string") chooseFirst();
    update();
  }

  function chooseFirst() {
    const first = cells.find((cell) => cell.rig && cell.rig.joints);
    if (first && first.rig.selected < 0) choose(first.rig, 0);
  }

  // A click, not a drag, on a joint chooses it.
  let pressed = null;
  canvas.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; });
  canvas.addEventListener("pointerup", (event) => {
    if (!pressed || Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4) return;
    for (const cell of cells) {
      if (!cell.rig || !cell.rig.joints) continue;
      const place = cell.space.getBoundingClientRect();
      const x = event.clientX - place.left, y = event.clientY - place.top;
      if (x < 0 || y < 0 || x > place.width || y > place.height) continue;
      camera.aspect = place.width / place.height;
      camera.updateProjectionMatrix();
      let best = 14, found = -1;
      for (let j = 0; j < cell.rig.joints; j++) {
        const seen = new T.Vector3().fromArray(cell.rig.places, 3 * j).project(camera);
        const d = Math.hypot(((seen.x + 1) / 2) * place.width - x, ((1 - seen.y) / 2) * place.height - y);
        if (d < best) { best = d; found = j; }
      }
      if (found >= 0) choose(cell.rig, found);
    }
  });

  // ------------------------------------------------------------------ controls

  function choice(options, current, act) {
    const group = element("span", { className: "choice" });
    const set = (value) => {
      for (const button of group.children) button.setAttribute("aria-pressed", String(button.value === value));
    };
    for (const [value, text] of options) {
      const button = element("button", { type: "button", value, textContent: text });
      button.addEventListener("click", () => { set(value); act(value); });
      group.append(button);
    }
    set(current);
    return [group, set];
  }

  const labelled = (text, ...parts) => element("label", {}, text, ...parts);
  const meshSelect = element("select", { id: "mesh" });
  data.meshes.forEach((mesh, place) => meshSelect.append(element("option", { value: String(place), textContent: mesh.name })));
  meshSelect.addEventListener("change", () => { state.mesh = Number(meshSelect.value); frameMesh(state.mesh); fill(); });
  if (data.meshes.length > 1) bar.append(labelled("Mesh", meshSelect));

  if (several) {
    const [group] = choice(
      stages.filter((stage) => stage !== "ground truth").map((stage) => [stage, stage]), state.stage,
      (stage) => { state.stage = stage; fill(); },
    );
    bar.append(group);
  }
  const [colourGroup, showColours] = choice(
    [["bones", "all bones"], ["one", "one bone"], ["stretch", "stretch"], ["none", "plain"]], state.colours,
    (value) => { setColours(value); if (value === "one") chooseFirst(); update(); },
  );
  function setColours(value) {
    state.colours = value;
    showColours(value);
  }
  bar.append(labelled("Colour"), colourGroup);

  const poseSelect = element("select", { id: "pose" });
  const poseLists = data.rigs.filter((row) => row.poseDegrees).map((row) => row.poseDegrees);
  const named = poseLists.reduce((most, own) => (own.length > most.length ? own : most), []);
  named.forEach((degrees, p) => {
    const how = degrees === null ? "recorded" : `${degrees}°`;
    poseSelect.append(element("option", { value: String(p), textContent: `reward's pose ${p + 1}, ${how}` }));
  });
  for (const axis of ["x", "y", "z"])
    poseSelect.append(element("option", { value: axis, textContent: `chosen joint about ${axis}` }));
  poseSelect.addEventListener("change", () => {
    state.pose = "xyz".includes(poseSelect.value) ? poseSelect.value : Number(poseSelect.value);
    if (typeof state.pose === "string") chooseFirst();
    showDegrees();
    update();
  });
  const slider = element("input", {
    type: "range", id: "degrees", min: "0", max: String(MOST_DEGREES), step: "1", value: "0",
  });
  const shownDegrees = element("output", { textContent: "0°" });
  slider.addEventListener("input", () => {
    state.degrees = Number(slider.value);
    showDegrees();
    update();
  });
  function showDegrees() {
    const recorded = named[state.pose] === null;
    shownDegrees.textContent = recorded ? `${Math.round((100 * state.degrees) / MOST_DEGREES)} %` : `${state.degrees}°`;
  }
  const skeleton = element("input", { type: "checkbox", checked: true, id: "skeleton" });
  skeleton.addEventListener("change", () => { state.skeleton = skeleton.checked; update(); });
  bar2.append(labelled("Pose", poseSelect), labelled("up to", slider, shownDegrees), labelled("", skeleton, "skeleton"));

  new ResizeObserver(draw).observe(box);
  frameMesh(state.mesh);
  fill();

  // For tests and for the browser's console.
  return {
    canvas,
    cells: () => cells.map(({ column, rig }) => ({
      run: column.run,
      stage: column.stage,
      joints: rig ? rig.joints : 0,
      positions: rig ? Array.from(rig.positions.array) : [],
      colours: rig ? Array.from(rig.colours.array) : [],
      joints3d: rig && rig.joints ? Array.from(rig.places) : [],
    })),
    drawNow,
  };
}

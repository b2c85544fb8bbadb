// Starts the page: unpacks three.js and the geometry, then draws charts and viewer.
"use strict";

async function unpacked(id) {
  const text = document.getElementById(id).textContent.trim();
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (typeof drawCharts === "function" && data.charts) drawCharts(data.charts);
  const root = document.getElementById("viewer");
  if (root && data.viewer && data.viewer.rigs.length) {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpacked("library"));
    document.head.append(script);
    window.rigViewer = startViewer(root, data.viewer, await unpacked("geometry"));
  }
  document.documentElement.dataset.ready = "true";
}

start();

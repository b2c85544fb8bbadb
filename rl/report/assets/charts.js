// Draws the page's charts as SVG: curves with bands, histograms, and scatter plots, with values under the pointer.
"use strict";

/* exported drawCharts */
const WIDTH = 300, HEIGHT = 172, LEFT = 42, RIGHT = 8, TOP = 10, BOTTOM = 22;

function svg(kind, values = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Round numbers that divide a range into about `count` parts.
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((own) => own >= raw);
  const found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step)
    found.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  return found;
}

function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 100000))
    return Number(value.toPrecision(2)).toExponential().replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function precise(value) {
  const size = Math.abs(value);
  return size !== 0 && size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

// Eight colours, then the same with dashes, then with dots.
const runClass = (run) => `run${run % 8} dash${Math.floor(run / 8) % 3}`;

// So many runs that bands and the rigs before training would hide the rest.
const crowded = (shown) => new Set(shown.map((series) => series.run)).size > 4;

// A frame with axes: functions from values to pixels, and a figure around it.
function frame(title, [x0, x1], [y0, y1], whole = false) {
  if (x1 <= x0) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  if (y1 <= y0) {
    const room = Math.abs(y0) * 0.1;
    [y0, y1] = room ? [y0 - room, y1 + room] : [0, 1];
  }
  const x = (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const t of ticks(y0, y1, 4)) {
    plot.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(t), y2: y(t) }));
    plot.append(svg("text", { x: LEFT - 6, y: y(t) + 3.5, "text-anchor": "end" }, short(t)));
  }
  for (const t of ticks(x0, x1, 5).filter((own) => !whole || Number.isInteger(own)))
    plot.append(svg("text", { x: x(t), y: HEIGHT - 6, "text-anchor": "middle" }, short(t)));
  const value = document.createElement("span");
  const caption = document.createElement("figcaption");
  caption.append(title, value);
  const figure = document.createElement("figure");
  figure.append(caption, plot);
  return { x, y, x0, x1, plot, figure, value };
}

const range = (values) => [Math.min(...values), Math.max(...values)];

function padded([low, high]) {
  const room = (high - low) * 0.04;
  return [low - room, high + room];
}

function path(points) {
  return points.map(([a, b], place) => `${place ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
}

function curveChart(chart, hidden) {
  const shown = chart.series.filter((series) => !hidden.has(series.run));
  const plain = crowded(shown);
  const xs = [], ys = [];
  for (const series of shown) {
    if (series.steps) {
      xs.push(...series.steps);
      // Single steps that jump out of the band do not set the scale.
      ys.push(...series.smooth);
      if (!plain) ys.push(...series.low, ...series.high);
    }
    for (const point of series.heldOut) {
      xs.push(point.step);
      ys.push(point.mean - point.error, point.mean + point.error);
    }
  }
  if (!xs.length) return null;
  const { x, y, plot, figure, value } = frame(chart.title, range(xs), padded(range(ys)), true);
  figure.title = `${chart.metric}; ${chart.note}`;
  const clip = `clip${Math.random().toString(36).slice(2)}`;
  plot.prepend(svg("clipPath", { id: clip }, svg("rect", { x: LEFT, y: TOP - 4, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM + 8 })));
  for (const series of shown) {
    const group = svg("g", { class: runClass(series.run), "clip-path": `url(#${clip})` });
    if (series.steps) {
      const at = (name) => series.steps.map((step, place) => [x(step), y(series[name][place])]);
      if (!plain) group.append(svg("path", { class: "area", d: `${path([...at("high"), ...at("low").reverse()])}Z` }));
      if (!plain && series.steps.length > 20) group.append(svg("path", { class: "raw", d: path(at("values")) }));
      group.append(svg("path", { class: "curve", d: path(at("smooth")) }));
    }
    plot.append(group);
    for (const point of series.heldOut) {
      const [px, low, high] = [x(point.step), y(point.mean - point.error), y(point.mean + point.error)];
      plot.append(
        svg("g", { class: runClass(series.run) },
          svg("line", { class: "error", x1: px, x2: px, y1: low, y2: high }),
          svg("circle", { class: "held", cx: px, cy: y(point.mean), r: 3 })),
      );
    }
  }
  const last = shown.filter((series) => series.steps);
  const rest = last.length === 1 ? precise(last[0].smooth[last[0].smooth.length - 1]) : "";
  value.textContent = rest;
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  plot.append(cursor);
  plot.addEventListener("pointermove", (event) => {
    const place = plot.getBoundingClientRect();
    const wanted = ((event.clientX - place.left) / place.width) * WIDTH;
    const found = last.map((series) => {
      const nearest = series.steps.reduce((best, step, own) =>
        Math.abs(x(step) - wanted) < Math.abs(x(series.steps[best]) - wanted) ? own : best, 0);
      return [series.steps[nearest], series.values[nearest]];
    });
    if (!found.length) return;
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", x(found[0][0]));
    cursor.setAttribute("x2", x(found[0][0]));
    value.textContent = `step ${Math.round(found[0][0])}: ${found.map((own) => precise(own[1])).join(" · ")}`;
  });
  plot.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    value.textContent = rest;
  });
  return figure;
}

// The series to show: of many runs the rigs after training alone.
function rigSeries(all, hidden) {
  const shown = all.filter((series) => !hidden.has(series.run));
  return crowded(shown) ? shown.filter((series) => series.stage === "after") : shown;
}

function histogram(chart, hidden) {
  const shown = rigSeries(chart.series, hidden);
  if (!shown.length) return null;
  const edges = chart.edges;
  const most = Math.max(...shown.flatMap((series) => series.shares)) * 100;
  const { x, y, plot, figure, value } = frame(chart.title, [edges[0], edges[edges.length - 1]], [0, most]);
  for (const series of shown) {
    const points = [[x(edges[0]), y(0)]];
    series.shares.forEach((share, bin) => points.push([x(edges[bin]), y(share * 100)], [x(edges[bin + 1]), y(share * 100)]));
    points.push([x(edges[edges.length - 1]), y(0)]);
    plot.append(svg("path", { class: `bars ${runClass(series.run)} stage-${series.stage}`, d: path(points) }));
  }
  const means = (run) => shown.filter((series) => series.run === run).map((series) => series.mean.toFixed(3)).join(" → ");
  const runs = [...new Set(shown.map((series) => series.run))];
  value.textContent = runs.length === 1 ? `mean ${means(runs[0])}` : "";
  figure.title = "share of the rigs, %";
  return figure;
}

function correlation(a, b) {
  const mean = (list) => list.reduce((sum, own) => sum + own, 0) / list.length;
  const ma = mean(a), mb = mean(b);
  let ab = 0, aa = 0, bb = 0;
  a.forEach((own, place) => {
    ab += (own - ma) * (b[place] - mb);
    aa += (own - ma) ** 2;
    bb += (b[place] - mb) ** 2;
  });
  return aa && bb ? ab / Math.sqrt(aa * bb) : null;
}

function scatter(all, diagnostic, measure, hidden) {
  const known = all.series.filter((series) => series.values[diagnostic] && series.values[measure]);
  const shown = rigSeries(known, hidden);
  if (!shown.length) return null;
  const xs = range(shown.flatMap((series) => series.values[diagnostic]));
  const ys = range(shown.flatMap((series) => series.values[measure]));
  const { x, y, plot, figure, value } = frame(diagnostic.replaceAll("_", " "), padded(xs), padded(ys));
  for (const series of shown) {
    const group = svg("g", { class: runClass(series.run) });
    series.values[diagnostic].forEach((own, place) =>
      group.append(svg("circle", { class: `dot stage-${series.stage}`, cx: x(own).toFixed(1), cy: y(series.values[measure][place]).toFixed(1), r: 2.4 })));
    plot.append(group);
  }
  const after = shown.filter((series) => series.stage === "after");
  if (after.length === 1) {
    const r = correlation(after[0].values[diagnostic], after[0].values[measure]);
    value.textContent = r === null ? "" : `r after ${r.toFixed(2)}`;
  }
  return figure;
}

function drawCharts(charts) {
  const hidden = new Set();
  const several = charts.runs.length > 1;
  if (several) document.body.classList.add("many");

  function legend(root) {
    if (!several) return;
    const row = document.createElement("div");
    row.className = "legend";
    charts.runs.forEach((name, run) => {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !hidden.has(run);
      box.addEventListener("change", () => {
        if (box.checked) hidden.delete(run);
        else hidden.add(run);
        drawAll();
      });
      const mark = document.createElement("i");
      const label = document.createElement("label");
      label.className = runClass(run);
      label.append(box, mark, name);
      row.append(label);
    });
    for (const [text, runs] of [["all", []], ["none", charts.runs.keys()]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => {
        hidden.clear();
        for (const run of runs) hidden.add(run);
        drawAll();
      });
      row.append(button);
    }
    root.append(row);
  }

  function grid(root, figures) {
    const made = document.createElement("div");
    made.className = "charts";
    made.append(...figures.filter((figure) => figure !== null));
    root.append(made);
  }

  let measure = charts.scatters.measures[0];
  function drawAll() {
    const curves = document.getElementById("curve-charts");
    if (curves) {
      curves.replaceChildren();
      legend(curves);
      for (const group of charts.curves) {
        const title = document.createElement("h3");
        title.textContent = group.title;
        curves.append(title);
        grid(curves, group.charts.map((chart) => curveChart(chart, hidden)));
      }
    }
    const bars = document.getElementById("histograms");
    if (bars) {
      bars.replaceChildren();
      legend(bars);
      grid(bars, charts.histograms.map((chart) => histogram(chart, hidden)));
    }
    const dots = document.getElementById("scatters");
    if (dots) {
      dots.replaceChildren();
      legend(dots);
      const select = document.createElement("select");
      select.id = "measure";
      for (const name of charts.scatters.measures) select.append(new Option(name, name, false, name === measure));
      select.addEventListener("change", () => { measure = select.value; drawAll(); });
      const label = document.createElement("label");
      label.append("vertical axis: ", select);
      const bar = document.createElement("div");
      bar.className = "bar";
      bar.append(label);
      dots.append(bar);
      grid(dots, charts.scatters.diagnostics.map((name) => scatter(charts.scatters, name, measure, hidden)));
    }
  }
  drawAll();
}

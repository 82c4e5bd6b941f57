// The figures: a panel is drawn when it is chosen; lines are switched by check boxes, which the keyboard reaches too.

// Markers of the legend, around 0, as Plotly draws them.
const SHAPES = {
  circle: "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0", square: "M-4,-4h8v8h-8z", diamond: "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
  "triangle-left": "M-5,0L4,5V-5z", "triangle-right": "M5,0L-4,5V-5z", hexagon: "M0,-5L4.3,-2.5V2.5L0,5L-4.3,2.5V-2.5z",
  pentagon: "M0,-5L4.8,-1.5L2.9,4H-2.9L-4.8,-1.5z", "diamond-tall": "M0,-6L3,0L0,6L-3,0z", "triangle-up": "M0,-5L5,4H-5z", "triangle-down": "M0,5L5,-4H-5z", cross: "M-1.5,-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
  x: "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0z", star: "M0,-5.5L1.5,-1.7H5.5L2.3,0.7L3.4,4.8L0,2.4L-3.4,4.8L-2.3,0.7L-5.5,-1.7H-1.5z",
};

// Plotly reads some markup in texts: names must stay names.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const faded = (colour) => `${colour}1f`; // eight digits: with an opacity of 12 %

function swatch({ colour, dash = "", symbol, thin }) {
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const made = svg("svg", { width: 34, height: 12, "aria-hidden": "true" });
  if (!symbol || dash) made.append(svg("line", { x1: 0, x2: 34, y1: 6, y2: 6, stroke: colour, "stroke-width": thin ? 1 : 2.5, "stroke-dasharray": dash.replaceAll("px", "") }));
  if (symbol) made.append(svg("path", { d: SHAPES[symbol], fill: colour, stroke: colour, transform: "translate(17 6)" }));
  return made;
}

function hover(line, i) {
  const range = line.low ? ` [${line.low[i].toFixed(1)}, ${line.high[i].toFixed(1)}]` : "";
  const parts = [`<b>${plain(line.label + line.signs)}</b>`, `${line.y[i].toFixed(1)} %${range}`, `at ${Number(line.x[i].toPrecision(4))}, ${line.images} images${line.n ? `, N = ${line.n.toLocaleString("en")}` : ""}`];
  if (line.text?.[i]) parts.push(plain(line.text[i]));
  if (line.badges.length) parts.push(plain(line.badges.map((each) => each.text).join(", ")));
  return parts.join("<br>");
}

function traces(panel, line, bands) {
  const shape = panel.shape ?? "linear", steps = shape === "vh", joined = steps || (!panel.log && line.x.length > 2); // clean and one eps: no curve
  const x = steps ? [...line.x, line.x.at(-1)] : line.x, fall = (y) => (steps ? [...y, 0] : y);
  const common = { x, type: "scatter", showlegend: false };
  const made = [];
  if (joined && bands && line.low && !line.thin) {
    const edge = { ...common, x: line.x, mode: "lines", hoverinfo: "skip", line: { width: 0, shape } };
    made.push({ ...edge, y: line.low }, { ...edge, y: line.high, fill: "tonexty", fillcolor: faded(line.colour) });
  }
  const bars = !joined && bands && { type: "data", symmetric: false, array: line.high.map((high, i) => high - line.y[i]),
    arrayminus: line.low.map((low, i) => line.y[i] - low), color: line.colour, thickness: 1, width: 3 };
  made.push({ ...common, y: fall(line.y), name: plain(line.label), mode: steps ? "lines" : joined ? "lines+markers" : "markers",
    line: { color: line.colour, dash: line.dash || "solid", width: line.thin ? 1 : 2, shape },
    marker: { color: line.colour, symbol: line.symbol, size: 9 }, ...(bars ? { error_y: bars } : {}),
    cliponaxis: false, text: line.x.map((_, i) => hover(line, i)), hovertemplate: "%{text}<extra></extra>",
    customdata: x.map((_, i) => [line.runs[Math.min(i, line.runs.length - 1)], steps ? x[i] : null]) });
  return made;
}

// 1, 2 and 5 in each decade, as plain numbers.
function ticks(panel) {
  const all = panel.lines.flatMap((line) => line.x), values = [];
  for (let decade = Math.floor(Math.log10(Math.min(...all))); decade <= Math.log10(Math.max(...all)); decade += 1) {
    values.push(...[1, 2, 5].map((factor) => Number(`${factor}e${decade}`)));
  }
  return { tickvals: values, ticktext: values.map((value) => value.toLocaleString("en", { maximumFractionDigits: 9 })) };
}

function layout(panel) {
  const limits = panel.limits ?? [];
  const axis = { gridcolor: "#e3e3e3", zerolinecolor: "#bbb", linecolor: "#666", showline: true, automargin: true };
  return {
    margin: { l: 56, r: 16, t: 16, b: 52 }, font: { family: "system-ui, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif", size: 13, color: "#1b1b1b" }, height: 460,
    paper_bgcolor: "#fff", plot_bgcolor: "#fff", hovermode: "closest", dragmode: false, showlegend: false,
    hoverlabel: { bgcolor: "#fff", bordercolor: "#444", font: { color: "#1b1b1b" }, align: "left" },
    xaxis: { ...axis, title: { text: plain(panel.x) }, type: panel.log ? "log" : "linear", ...(panel.right ? { range: [0, panel.right] } : {}), ...(panel.log ? ticks(panel) : {}) },
    yaxis: { ...axis, title: { text: plain(panel.y) }, range: [0, 101] },
    shapes: limits.map(([x]) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: "#555", dash: "dot", width: 1.2 } })),
    annotations: limits.map(([x, label]) => ({ x, y: 1, yref: "paper", text: plain(label), textangle: -90, showarrow: false, xanchor: "left", yanchor: "top", font: { size: 11, color: "#555" } })),
  };
}

function figure(section, { choices, panels, start }) {
  const plot = section.querySelector(".plot"), legend = section.querySelector(".legend"), form = section.querySelector("form"), note = section.querySelector(".note");
  const selects = choices.map((name, i) => {
    const options = [...new Set(panels.map((panel) => panel.at[i]))];
    const made = element("select", { name }, ...options.map((text) => element("option", { value: text }, text)));
    form.append(element("label", {}, `${name} `, made));
    return made;
  });
  const bands = element("input", { type: "checkbox" }), off = new Set();
  bands.checked = true;
  const none = element("button", { type: "button" }, "none"), all = element("button", { type: "button" }, "all");
  form.append(element("label", {}, bands, " intervals"), element("span", {}, "lines: ", all, " ", none));
  let panel;
  const draw = () => {
    const lines = panel.lines.filter((line) => !off.has(line.label));
    const made = lines.flatMap((line) => traces(panel, line, bands.checked));
    if (panel.front) made.unshift({ ...panel.front, type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: "#999", width: 1, shape: "hv" } });
    Plotly.react(plot, made, layout(panel), { responsive: true, displayModeBar: false, scrollZoom: false });
  };
  const entry = (line) => {
    const box = element("input", { type: "checkbox" });
    box.checked = !off.has(line.label);
    box.addEventListener("change", () => { box.checked ? off.delete(line.label) : off.add(line.label); draw(); });
    return element("label", {}, box, swatch(line), ` ${line.label} `, ...line.badges.map(badge));
  };
  selects.forEach((select, i) => { select.value = panels[start].at[i]; });
  const choose = () => {
    const fits = (each, count) => selects.slice(0, count).every((select, i) => each.at[i] === select.value);
    panel = panels.find((each) => fits(each, selects.length)) ?? panels.find((each) => fits(each, 1));
    selects.forEach((select, i) => { select.value = panel.at[i]; });
    legend.replaceChildren(legend.firstElementChild, ...panel.lines.map(entry));
    note.textContent = panel.note ?? "";
    draw();
  };
  selects.forEach((select) => select.addEventListener("change", choose));
  bands.addEventListener("change", draw);
  all.addEventListener("click", () => { off.clear(); choose(); });
  none.addEventListener("click", () => { panel.lines.forEach((line) => off.add(line.label)); choose(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  choose();
  plot.on("plotly_click", ({ points: [point] }) => {
    const [run, radius] = point.customdata ?? [];
    if (run !== undefined) open(run, radius ?? undefined);
  });
}

// A figure is drawn when it comes near, or when the page is printed.
const waiting = new Map(data("data-figures").map((each) => [document.getElementById(`figure-${each.key}`), each]));
const drawNow = (section) => {
  const found = waiting.get(section);
  if (waiting.delete(section)) figure(section, found);
};
const near = new IntersectionObserver((entries) => entries.filter((each) => each.isIntersecting).forEach((each) => drawNow(each.target)), { rootMargin: "600px" });
[...waiting.keys()].forEach((section) => near.observe(section));
window.addEventListener("beforeprint", () => [...waiting.keys()].forEach(drawNow));
linked();

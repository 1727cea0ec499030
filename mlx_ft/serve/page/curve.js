// A job's losses as inline SVG, drawn anew as figures come.

import { el, loss, svg } from "./dom.js";

const HEIGHT = 220;
const EDGE = { left: 52, right: 24, top: 12, bottom: 34 };
const SERIES = [["train/loss", "train", "training loss"], ["val/loss", "valid", "validation loss"]];

export class Curve {
  constructor(name) {
    this.name = name;
    this.key = el("p", { class: "key" });
    this.place = el("div", { class: "curve" });
    this.element = el("figure", {}, this.key, this.place);
    this.clear();
    new ResizeObserver(() => this.later()).observe(this.place);
  }

  clear() {
    this.points = Object.fromEntries(SERIES.map(([metric]) => [metric, new Map()]));
    this.later();
  }

  // A row of the run's figures; one of a step that is known takes its place.
  add(row) {
    for (const [metric] of SERIES) {
      if (Number.isFinite(row[metric])) this.points[metric].set(row.step, row[metric]);
    }
    this.later();
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.draw();
    });
  }

  draw() {
    const width = this.place.clientWidth;
    if (!width) return;
    const found = SERIES.map(([metric, kind, words]) => ({
      kind, words, points: [...this.points[metric]].sort(([a], [b]) => a - b),
    })).filter(({ points }) => points.length);
    this.key.replaceChildren(...found.map(({ kind, words, points }) => el("span", { class: kind },
      svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, svg("path", { d: "M1 5H25", class: kind })),
      `${words} ${loss(points.at(-1)[1])}`)));
    if (!found.length) {
      this.place.replaceChildren(el("p", { class: "hint" }, "No figures yet."));
      return;
    }
    const said = found.map(({ words, points }) => `${words} ${loss(points.at(-1)[1])} at step ${points.at(-1)[0]}`);
    const scale = new Scale(found.flatMap(({ points }) => points), width);
    this.place.replaceChildren(svg("svg", {
      width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `Losses of ${this.name}: ${said.join(", ")}`,
    }, ...scale.axes(), ...found.flatMap((series) => scale.line(series))));
  }
}

class Scale {
  constructor(points, width) {
    const values = points.map(([, value]) => value);
    let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    this.values = ticks(low, high, 5);
    this.low = Math.min(low, this.values[0]);
    this.high = Math.max(high, this.values.at(-1));
    this.last = points.reduce((most, [step]) => Math.max(most, step), 1);
    this.width = width;
  }

  x(step) { return EDGE.left + (step / this.last) * (this.width - EDGE.left - EDGE.right); }

  y(value) {
    return EDGE.top + ((this.high - value) / (this.high - this.low)) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  axes() {
    const steps = ticks(0, this.last, this.width < 420 ? 3 : 6).filter((step) => Number.isInteger(step));
    const bottom = HEIGHT - EDGE.bottom, right = this.width - EDGE.right;
    return [
      ...this.values.flatMap((value) => [
        svg("path", { class: "grid", d: `M${EDGE.left} ${this.y(value).toFixed(1)}H${right}` }),
        svg("text", { x: EDGE.left - 8, y: (this.y(value) + 4).toFixed(1), "text-anchor": "end" }, short(value)),
      ]),
      ...steps.map((step) => svg("text", { x: this.x(step).toFixed(1), y: bottom + 16, "text-anchor": "middle" }, short(step))),
      svg("text", { x: right, y: HEIGHT - 4, "text-anchor": "end" }, "steps"),
    ];
  }

  line({ kind, points }) {
    const at = this.thinned(points).map(([step, value]) => `${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`);
    const dots = kind === "valid" || points.length === 1;
    return [
      svg("path", { class: kind, d: `M${at.join("L")}` }),
      ...(dots ? at.slice(-200).map((place) => svg("circle", { class: kind, cx: place.split(" ")[0], cy: place.split(" ")[1], r: 3 })) : []),
    ];
  }

  // The lowest and the highest of each pixel, where there are more points than pixels.
  thinned(points) {
    if (points.length <= 2 * this.width) return points;
    const columns = new Map();
    for (const point of points) {
      const column = Math.round(this.x(point[0]));
      const [low, high] = columns.get(column) ?? [point, point];
      columns.set(column, [point[1] < low[1] ? point : low, point[1] > high[1] ? point : high]);
    }
    return [...columns.values()].flatMap(([low, high]) => (low[0] <= high[0] ? [low, high] : [high, low]));
  }
}

// About `count` round numbers from low to high.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let at = first; at * step <= high + 1e-9 * step; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const short = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(0) : compact.format(value));

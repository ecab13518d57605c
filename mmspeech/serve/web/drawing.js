// A canvas of nine places: what the embedded model knows. Up to four shapes.

export const SHAPES = ["circle", "square", "triangle", "star", "cross"];
export const COLOURS = {
  red: "#de2424", green: "#28a53c", blue: "#285ae6", yellow: "#f6dc28",
  purple: "#9632be", orange: "#f58719", white: "#fafafa", black: "#0c0c0c",
};
const RADII = { small: 0.09, large: 0.15 };
const MIDDLES = [0.18, 0.5, 0.82];
const MOST = 4;

const pick = (items) => items[Math.floor(Math.random() * items.length)];

function corners(points, radii) {
  return Array.from({ length: points }, (_, k) => {
    const angle = -Math.PI / 2 + (2 * Math.PI * k) / points + (points === 4 ? Math.PI / 4 : 0);
    const radius = radii[k % radii.length];
    return [Math.cos(angle) * radius, Math.sin(angle) * radius];
  });
}

function outline(shape) {
  if (shape === "square") return corners(4, [1]);
  if (shape === "triangle") return corners(3, [1]);
  if (shape === "star") return corners(10, [1, 0.42]);
  const [arm, width] = [0.95, 0.31];
  const quarter = [[width, -arm], [width, -width], [arm, -width]];
  const turns = [[1, 0], [0, 1], [-1, 0], [0, -1]];
  return turns.flatMap(([c, s]) => quarter.map(([x, y]) => [x * c - y * s, x * s + y * c]));
}

export class Drawing {
  constructor(canvas, chosen, changed) {
    Object.assign(this, { canvas, chosen, changed, places: new Array(9).fill(null) });
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const at = (value, size) => Math.min(2, Math.floor((3 * value) / size));
      this.toggle(3 * at(event.clientY - box.top, box.height) + at(event.clientX - box.left, box.width));
    });
    canvas.addEventListener("keydown", (event) => {
      if (/^[1-9]$/.test(event.key)) this.toggle(Number(event.key) - 1);
    });
    this.places[4] = { shape: "circle", colour: "red", size: "large" };
    this.places[0] = { shape: "star", colour: "blue", size: "small" };
    this.draw();
  }

  toggle(place) {
    const full = this.places.filter(Boolean).length >= MOST;
    if (!this.places[place] && full) return;
    this.places[place] = this.places[place] ? null : this.chosen();
    this.refresh();
  }

  clear() {
    this.places.fill(null);
    this.refresh();
  }

  surprise() {
    this.places.fill(null);
    const count = 1 + Math.floor(Math.random() * MOST);
    const colours = Object.keys(COLOURS).filter((name) => name !== "white");
    while (this.places.filter(Boolean).length < count) {
      this.places[Math.floor(Math.random() * 9)] = { shape: pick(SHAPES), colour: pick(colours), size: pick(Object.keys(RADII)) };
    }
    this.refresh();
  }

  refresh() {
    this.draw();
    this.changed();
  }

  draw() {
    const size = this.canvas.width;
    const paint = this.canvas.getContext("2d");
    paint.fillStyle = "#cfcfcc";
    paint.fillRect(0, 0, size, size);
    this.places.forEach((item, place) => {
      if (!item) return;
      const x = MIDDLES[place % 3] * size;
      const y = MIDDLES[Math.floor(place / 3)] * size;
      const radius = RADII[item.size] * size;
      paint.fillStyle = COLOURS[item.colour];
      paint.beginPath();
      if (item.shape === "circle") paint.arc(x, y, 0.9 * radius, 0, 2 * Math.PI);
      else for (const [dx, dy] of outline(item.shape)) paint.lineTo(x + dx * radius, y + dy * radius);
      paint.fill();
    });
  }

  bytes() {
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }
}

// A line that runs to the left as new values come.

export class Plot {
  constructor(canvas, top) {
    Object.assign(this, { canvas, top, values: [] });
  }

  add(value) {
    this.values.push(value);
    if (this.values.length > 240) this.values.shift();
    this.draw();
  }

  clear() {
    this.values = [];
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas;
    const paint = this.canvas.getContext("2d");
    paint.clearRect(0, 0, width, height);
    paint.strokeStyle = getComputedStyle(this.canvas).getPropertyValue("--accent");
    paint.lineWidth = 2;
    paint.beginPath();
    this.values.forEach((value, k) => {
      paint.lineTo((k / 239) * width, height - 3 - (height - 6) * Math.min(1, value / this.top));
    });
    paint.stroke();
  }
}

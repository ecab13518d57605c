// Live pictures: a camera, a screen or a clip, so many a second.

export class Looking {
  constructor(video, show) {
    Object.assign(this, { video, show, fps: 2, canvas: document.createElement("canvas") });
  }

  get on() {
    return Boolean(this.clock);
  }

  async camera() {
    this.begin(await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } }));
  }

  async screen() {
    this.begin(await navigator.mediaDevices.getDisplayMedia({ video: true }));
  }

  clip(file) {
    this.stop();
    this.video.src = URL.createObjectURL(file);
    this.run();
  }

  begin(stream) {
    this.stop();
    this.stream = stream;
    this.video.srcObject = stream;
    this.run();
  }

  async run() {
    await this.video.play();
    this.pace();
    this.video.onended = () => this.pause();
  }

  pace(fps = this.fps) {
    this.fps = fps;
    clearInterval(this.clock);
    this.clock = setInterval(() => this.shoot(), 1000 / fps);
    this.shoot();
  }

  shoot() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) return;
    const scale = Math.min(1, 448 / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    this.canvas.toBlob((blob) => blob && this.show(blob), "image/jpeg", 0.9);
  }

  pause() {
    clearInterval(this.clock);
    this.clock = null;
  }

  stop() {
    this.pause();
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.video.src) URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
    this.video.srcObject = this.stream = null;
  }
}

/** What the network says of every place, with the points on it, and its loss as it falls. Points of one's own are set here. */
import { el, svg } from '../shell/dom.js';
import { colour, Map2 } from './paint.js';
import { SPAN } from './datasets.js';

export const FINE = 72; // cells a side of the large map
const KEPT = 600; // losses that are drawn

export class OutputView {
  /** onPoint(x, y, target): the map was pressed while points are being set. */
  constructor(onPoint) {
    this.map = new Map2(FINE);
    this.canvas = el('canvas', { class: 'output', role: 'img', tLabel: 'boundary', on: { pointerdown: (event) => this.press(event, onPoint), contextmenu: (event) => { if (this.setting) event.preventDefault(); } } });
    this.losses = el('dl', { class: 'losses number' });
    this.curve = svg('svg', { class: 'losscurve', viewBox: '0 0 300 80', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      svg('path', { class: 'test' }), svg('path', { class: 'train' }));
    this.host = el('div', {}, this.canvas, el('div', { class: 'scale' }, el('span', { class: 'number' }, '−1'), el('i'), el('span', { class: 'number' }, '1')),
      this.losses, this.curve);
    this.setting = false;
    this.clear();
  }

  clear() {
    this.losses.replaceChildren();
    for (const path of this.curve.children) path.removeAttribute('d');
    this.history = [];
    this.stride = 1;
    this.count = 0;
  }

  press(event, onPoint) {
    if (!this.setting) return;
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * 2 * SPAN - SPAN;
    const y = SPAN - (event.clientY - box.top) / box.height * 2 * SPAN;
    onPoint(x, y, event.button === 2 || event.shiftKey ? -1 : this.target);
  }

  /** sharp: colours without shades between. Of the test points only when showTest. */
  paint(train, test, { showTest, sharp }) {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const side = Math.round((this.canvas.clientWidth || 300) * ratio);
    if (this.canvas.width !== side) { this.canvas.width = side; this.canvas.height = side; }
    const pen = this.canvas.getContext('2d');
    this.map.show();
    pen.imageSmoothingEnabled = !sharp;
    pen.drawImage(this.map.canvas, 0, 0, side, side);
    const place = (value, sign) => (SPAN + sign * value) / (2 * SPAN) * side;
    const dot = (points, edge) => {
      pen.strokeStyle = edge;
      pen.lineWidth = 1.2 * ratio;
      for (const [x, y, target] of points) {
        pen.fillStyle = colour(1.25 * target);
        pen.beginPath();
        pen.arc(place(x, 1), place(y, -1), 3.4 * ratio, 0, 7);
        pen.fill();
        pen.stroke();
      }
    };
    if (showTest) dot(test, 'rgb(20 22 28)');
    dot(train, 'rgb(255 255 255)');
  }

  /** Adds an epoch's losses and draws their curve. accuracy: null for functions. */
  loss(trainLoss, testLoss, accuracy) {
    if (this.count % this.stride === 0) this.history.push([trainLoss, testLoss]);
    this.count += 1;
    if (this.history.length > KEPT) {
      this.history = this.history.filter((_, place) => place % 2 === 0);
      this.stride *= 2;
    }
    const most = Math.max(...this.history.flat().filter(Number.isFinite), 1e-9);
    const line = (which) => this.history.map((losses, place) => {
      const x = place / Math.max(1, this.history.length - 1) * 300;
      return `${place ? 'L' : 'M'}${x.toFixed(1)} ${(78 - 74 * losses[which] / most).toFixed(1)}`;
    }).join('');
    this.curve.children[1].setAttribute('d', line(0));
    this.curve.children[0].setAttribute('d', Number.isNaN(testLoss) ? '' : line(1));
    const rows = [['trainLoss', trainLoss.toFixed(3), 'train'], ['testLoss', Number.isNaN(testLoss) ? '–' : testLoss.toFixed(3), 'test']];
    if (accuracy !== null) rows.push(['rightSides', Number.isNaN(accuracy) ? '–' : `${(100 * accuracy).toFixed(0)} %`, '']);
    if (this.losses.childElementCount !== rows.length) {
      this.losses.replaceChildren(...rows.map(([key, , name]) => el('div', { class: name }, el('dt', { t: key }), el('dd'))));
    }
    rows.forEach(([, value], place) => { this.losses.children[place].lastChild.textContent = value; });
  }
}

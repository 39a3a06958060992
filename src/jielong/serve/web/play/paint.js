/** Heat maps and points: orange is -1, blue is 1, pale is 0; the same in light and dark. */

const LOW = [245, 135, 52];
const MIDDLE = [238, 240, 243];
const HIGH = [36, 110, 225];

/** value -1 … 1 -> red, green, blue into data[at …]. */
export function colourInto(data, at, value) {
  const strength = Math.min(1, Math.abs(value));
  const end = value < 0 ? LOW : HIGH;
  for (let i = 0; i < 3; i += 1) data[at + i] = MIDDLE[i] + (end[i] - MIDDLE[i]) * strength;
  data[at + 3] = 255;
}

export function colour(value) {
  const data = [];
  colourInto(data, 0, value);
  return `rgb(${data.slice(0, 3).map(Math.round).join(' ')})`;
}

/** A canvas of size × size map cells, its row 0 at the top. */
export class Map2 {
  constructor(size, props) {
    this.size = size;
    this.canvas = Object.assign(document.createElement('canvas'), { width: size, height: size });
    for (const [name, value] of Object.entries(props ?? {})) this.canvas.setAttribute(name, value);
    this.image = new ImageData(size, size);
  }

  set(cell, value) {
    colourInto(this.image.data, 4 * cell, value);
  }

  show() {
    this.canvas.getContext('2d').putImageData(this.image, 0, 0);
  }
}

/** Where the cell of a map lies: [x, y] of its middle. */
export function middleOf(cell, size, span) {
  return [((cell % size) + 0.5) / size * 2 * span - span, span - (Math.floor(cell / size) + 0.5) / size * 2 * span];
}

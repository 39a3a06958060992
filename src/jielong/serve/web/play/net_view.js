/** The network drawn: a heat map in every unit, a line for every weight, buttons for layers and units. */
import { el, iconButton, svg } from '../shell/dom.js';
import { FEATURES, SPAN } from './datasets.js';
import { FINE } from './output_view.js';
import { Map2, middleOf } from './paint.js';
import { MOST_LAYERS, MOST_UNITS } from './state.js';

const COARSE = 28; // cells a side of a unit's map
const SIZE = 40; // its pixels on the screen
const GAP = 12;
const TOP = 62; // room for the buttons above a layer

export class NetView {
  /** acts: feature(index), layers(step), units(layer, step), over(values of the unit or null), changed() */
  constructor(acts) {
    this.acts = acts;
    this.lines = svg('svg', { class: 'lines', 'aria-hidden': 'true' });
    this.stage = el('div', { class: 'stage' }, this.lines);
    this.tip = el('div', { class: 'weight tip', hidden: true });
    this.host = el('div', { class: 'net scroll', tabindex: 0, role: 'group', tLabel: 'network' }, this.stage);
    document.body.append(this.tip);
    this.watched = null;
    this.lines.addEventListener('pointermove', (event) => this.point(event));
    this.lines.addEventListener('pointerleave', () => { this.tip.hidden = true; this.watched = null; });
    new ResizeObserver(() => { if (this.network && this.host.clientWidth !== this.width) this.layout(this.network, this.settings); }).observe(this.host);
  }

  /** Lays the network out anew. */
  layout(network, settings) {
    this.network = network;
    this.settings = settings;
    this.width = this.host.clientWidth;
    const { hidden } = settings;
    const columns = hidden.length + 2;
    const rows = Math.max(FEATURES.length, ...hidden);
    const height = TOP + rows * (SIZE + GAP) + 10;
    const width = Math.max(this.width - 4, 150 + (columns - 1) * 92);
    const x = (column) => 64 + (width - 64 - SIZE - 14) * column / (columns - 1);
    const y = (row, num) => TOP + (rows - num) * (SIZE + GAP) / 2 + row * (SIZE + GAP);
    this.stage.style.width = `${width}px`;
    this.stage.style.height = `${height}px`;
    this.lines.setAttribute('width', width);
    this.lines.setAttribute('height', height);
    this.maps = [];
    this.paths = [];
    const nodes = [];
    FEATURES.forEach((feature, index) => nodes.push(this.input(feature, index, x(0), y(index, FEATURES.length))));
    hidden.forEach((num, layer) => {
      nodes.push(this.head(layer, num, x(layer + 1)));
      this.maps[layer + 1] = Array.from({ length: num }, (_, unit) => this.unit(nodes, x(layer + 1), y(unit, num), layer + 1, unit));
    });
    this.maps[columns - 1] = [this.unit(nodes, x(columns - 1), y(0, 1), columns - 1, 0)];
    nodes.push(this.layerButtons(x(columns - 1)));
    this.maps[0] = settings.features.map((index) => this.inputs[index]);
    this.stage.replaceChildren(this.lines, ...nodes);
    this.lines.replaceChildren();
    network.weights.forEach((weights, layer) => {
      const [below, above] = [network.sizes[layer], network.sizes[layer + 1]];
      const from = (unit) => (layer ? y(unit, below) : y(settings.features[unit], FEATURES.length)) + SIZE / 2;
      for (let i = 0; i < weights.length; i += 1) {
        const [x1, x2] = [x(layer) + SIZE, x(layer + 1)];
        const [y1, y2] = [from(i % below), y(Math.floor(i / below), above) + SIZE / 2];
        const middle = (x1 + x2) / 2;
        const path = svg('path', { d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` });
        this.paths.push({ path, layer, i });
        this.lines.append(path);
      }
    });
    // wide invisible copies, so that a thin line can be pointed at
    for (const each of [...this.paths]) {
      const wide = each.path.cloneNode();
      wide.setAttribute('class', 'wide');
      wide.weight = each;
      this.lines.append(wide);
    }
  }

  input(feature, index, left, top) {
    this.inputs ??= [];
    this.inputs[index] ??= this.featureMap(feature);
    const on = this.settings.features.includes(index);
    const last = on && this.settings.features.length === 1;
    const button = el('button', { type: 'button', class: 'unit input', 'aria-pressed': String(on), disabled: last, tLabel: ['featureOf', feature.name],
      on: { click: () => this.acts.feature(index) } }, this.inputs[index].canvas, el('span', { class: 'name' }, feature.name));
    place(button, left, top);
    return button;
  }

  /** The map of a feature does not change. */
  featureMap(feature) {
    const map = new Map2(COARSE);
    for (let cell = 0; cell < COARSE * COARSE; cell += 1) map.set(cell, feature.of(...middleOf(cell, COARSE, SPAN)) / (feature.name.startsWith('sin') ? 1 : SPAN));
    map.show();
    return map;
  }

  unit(nodes, left, top, layer, unit) {
    const map = new Map2(COARSE);
    const node = el('div', { class: 'unit', tTitle: 'unitWhy', on: { pointerenter: () => this.acts.over([layer, unit]), pointerleave: () => this.acts.over(null) } }, map.canvas);
    place(node, left, top);
    nodes.push(node);
    return map;
  }

  head(layer, num, left) {
    const node = el('div', { class: 'layerhead' },
      el('div', {}, iconButton('close', 'fewerUnits', () => this.acts.units(layer, -1), { class: 'quiet mini', disabled: num <= 1 }),
        iconButton('plus', 'moreUnits', () => this.acts.units(layer, 1), { class: 'quiet mini', disabled: num >= MOST_UNITS })),
      el('span', { class: 'mute', t: ['unitsOf', num] }));
    node.querySelector('.mini').replaceChildren('−');
    node.querySelectorAll('.mini')[1].replaceChildren('+');
    place(node, left + SIZE / 2, 0);
    return node;
  }

  layerButtons(left) {
    const num = this.settings.hidden.length;
    const node = el('div', { class: 'layerhead' }, el('div', {}, iconButton('close', 'fewerLayers', () => this.acts.layers(-1), { class: 'quiet mini', disabled: num === 0 }),
      iconButton('plus', 'moreLayers', () => this.acts.layers(1), { class: 'quiet mini', disabled: num >= MOST_LAYERS })), el('span', { class: 'mute', t: ['layersOf', num] }));
    node.querySelector('.mini').replaceChildren('−');
    node.querySelectorAll('.mini')[1].replaceChildren('+');
    place(node, left + SIZE / 2, 0);
    return node;
  }

  /** Fills all maps, and the large one with the unit `watched` ([layer, unit]), else with what comes out. */
  paint(large, watched, sharp) {
    const { network } = this;
    const features = this.settings.features.map((index) => FEATURES[index]);
    const input = new Float64Array(features.length);
    const top = network.sizes.length - 1;
    const shown = (value) => (sharp ? Math.sign(value) : value);
    const run = (size, each) => {
      for (let cell = 0; cell < size * size; cell += 1) {
        const [x, y] = middleOf(cell, size, SPAN);
        features.forEach((feature, place_) => { input[place_] = feature.of(x, y); });
        network.forward(input);
        each(cell);
      }
    };
    run(COARSE, (cell) => {
      for (let layer = 1; layer <= top; layer += 1) this.maps[layer].forEach((map, unit) => map.set(cell, shown(network.values[layer][unit])));
    });
    for (let layer = 1; layer <= top; layer += 1) for (const map of this.maps[layer]) map.show();
    const [layer, unit] = watched && watched[0] <= top && watched[1] < network.sizes[watched[0]] ? watched : [top, 0];
    run(FINE, (cell) => large.set(cell, shown(network.values[layer][unit])));
    for (const { path, layer: below, i } of this.paths) {
      const weight = network.weights[below][i];
      path.setAttribute('stroke-width', (0.4 + 4 * Math.min(1.6, Math.abs(weight))).toFixed(2));
      path.setAttribute('class', weight < 0 ? 'low' : 'high');
      path.setAttribute('stroke-opacity', (0.18 + 0.7 * Math.min(1, Math.abs(weight))).toFixed(2));
    }
    this.tell();
  }

  point(event) {
    this.watched = event.target.weight ?? null;
    this.tip.hidden = !this.watched;
    this.tip.style.left = `${event.clientX + 14}px`;
    this.tip.style.top = `${event.clientY + 10}px`;
    this.tell();
  }

  /** The weight that is pointed at, kept true while it changes. */
  tell() {
    if (this.watched) this.tip.textContent = this.network.weights[this.watched.layer][this.watched.i].toFixed(4);
  }
}

function place(node, left, top) {
  node.style.left = `${left}px`;
  node.style.top = `${top}px`;
}

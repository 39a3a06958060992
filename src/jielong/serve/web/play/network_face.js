/** The small network: points, network, what it says, and the buttons that make it learn. */
import { copy } from '../shell/copy.js';
import { download, el, iconButton } from '../shell/dom.js';
import { say } from '../shell/words.js';
import { Controls } from './controls.js';
import { draw, FEATURES, split } from './datasets.js';
import { toPython } from './export.js';
import { NetView } from './net_view.js';
import { Network } from './network.js';
import { OutputView } from './output_view.js';
import { fromHash, MOST_LAYERS, MOST_POINTS, MOST_UNITS, PRESETS, toHash, training, USUAL } from './state.js';

const FRAME_MILLISECONDS = 9; // of a frame for learning; the rest is for drawing

export class NetworkFace {
  constructor() {
    this.settings = fromHash(location.hash === '#neuron' ? '' : location.hash);
    this.running = false;
    this.watched = null;
    this.controls = new Controls(this.settings, { change: (name, scope) => this.change(name, scope), preset: (name) => this.preset(name) });
    this.output = new OutputView((x, y, target) => this.point(x, y, target));
    this.net = new NetView({
      feature: (index) => this.feature(index), layers: (step) => this.layers(step), units: (layer, step) => this.units(layer, step),
      over: (unit) => { this.watched = unit; if (!this.running) this.paint(); },
    });
    this.build();
    this.ready = false;
    addEventListener('repaint', () => { if (this.ready) this.paint(); });
  }

  build() {
    this.playButton = el('button', { type: 'button', class: 'primary run', on: { click: () => (this.running ? this.pause() : this.run()) } });
    this.epochs = el('output', { class: 'number' });
    this.message = el('p', { class: 'trouble', role: 'alert', hidden: true });
    const bar = el('div', { class: 'card controls' },
      el('div', { class: 'row go' }, iconButton('reset', 'startAnew', () => { this.settings.seed += 1; this.start(); }), this.playButton,
        iconButton('step', 'oneEpoch', () => { this.pause(); this.epoch(); this.paint(); }), el('div', { class: 'epochs' }, el('span', { class: 'mute small', t: 'epoch' }), this.epochs)),
      this.controls.training);
    this.pen = el('div', { class: 'pen', hidden: true }, el('p', { class: 'mute small', t: 'ownHint' }), el('div', { class: 'row' },
      el('div', { class: 'segments', role: 'group', tLabel: 'penColour' }, [['high', 1], ['low', -1]].map(([name, target]) => el('button', { type: 'button', t: `pen_${name}`, class: `pen-${name}`,
        'aria-pressed': String(target === 1), on: { click: (event) => this.choosePen(event.currentTarget, target) } }))),
      el('button', { type: 'button', t: 'clear', on: { click: () => { this.settings.own = []; this.start(); } } }),
      el('label', { class: 'button', t: 'loadCsv' })));
    this.file = el('input', { type: 'file', accept: '.csv,text/csv,text/plain', class: 'sr', tLabel: 'loadCsv', on: { change: () => this.load() } });
    this.pen.querySelector('label').append(this.file);
    this.pen.querySelector('label').removeAttribute('data-t');
    this.output.target = 1;
    this.host = el('section', { class: 'networkface', hidden: true }, bar, this.message, el('div', { class: 'three' },
      el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'points' })), this.controls.data, this.pen),
      el('section', { class: 'card middlecard' }, el('header', {}, el('h2', { t: 'network' }), el('div', { class: 'presets' }, this.controls.presets)), this.net.host, this.why = el('p', { class: 'mute small why' })),
      el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'output' }), el('span', { class: 'row tight' },
        iconButton('link', 'copyLink', () => this.copyLink()), iconButton('save', 'exportPython', () => this.save()))), this.output.host, this.controls.looks)));
    this.playState();
  }

  /** The face comes into sight. */
  shown() {
    if (!this.ready) { this.ready = true; this.start(); } else this.address();
  }

  reload() {
    Object.assign(this.settings, fromHash(location.hash));
    this.controls.show();
    this.start();
  }

  /** A network with fresh weights, and points. */
  start() {
    this.pause();
    this.message.hidden = true;
    this.plan = training(this.settings);
    this.network = new Network(this.plan.sizes, this.plan.activation, this.plan.regression, this.settings.seed);
    this.count = 0;
    this.output.clear();
    this.net.layout(this.network, this.settings);
    this.points();
    this.paint();
    this.address();
  }

  points() {
    const features = this.settings.features.map((index) => FEATURES[index]);
    [this.train, this.test] = split(draw(this.settings), this.settings.data === 'own' ? 1 : this.settings.share);
    const prepare = (points) => { points.inputs = points.map(([x, y]) => features.map(({ of }) => of(x, y))); points.targets = points.map(([, , target]) => target); };
    prepare(this.train);
    prepare(this.test);
    this.output.setting = this.settings.data === 'own';
    this.output.canvas.classList.toggle('setting', this.output.setting);
    this.pen.hidden = !this.output.setting;
  }

  change(name, scope) {
    if (name !== 'data') this.why.textContent = '';
    if (scope === 'net' || name === 'data') { this.start(); return; }
    if (scope === 'data') this.points();
    this.plan = training(this.settings);
    this.paint();
    this.address();
  }

  preset(name) {
    Object.assign(this.settings, structuredClone(USUAL), PRESETS[name], { seed: this.settings.seed, dataSeed: this.settings.dataSeed });
    this.controls.show();
    this.start();
    this.why.setAttribute('data-t', `why_${name}`);
    this.why.textContent = say(`why_${name}`);
    this.controls.presets.value = '';
  }

  feature(index) {
    const { features } = this.settings;
    const next = features.includes(index) ? features.filter((each) => each !== index) : [...features, index].sort((a, b) => a - b);
    if (next.length) this.reshape('features', next);
  }

  layers(step) {
    const { hidden } = this.settings;
    if (step > 0 && hidden.length < MOST_LAYERS) this.reshape('hidden', [...hidden, 2]);
    if (step < 0 && hidden.length) this.reshape('hidden', hidden.slice(0, -1));
  }

  units(layer, step) {
    this.reshape('hidden', this.settings.hidden.map((num, place) => (place === layer ? Math.max(1, Math.min(MOST_UNITS, num + step)) : num)));
  }

  /** Another shape; the focus stays at the button that was pressed. */
  reshape(name, value) {
    const buttons = () => [...this.net.host.querySelectorAll('button')];
    const place = buttons().indexOf(document.activeElement);
    this.settings[name] = value;
    this.change(name, 'net');
    if (place >= 0) buttons()[Math.min(place, buttons().length - 1)]?.focus();
  }

  run() {
    if (!this.train.length) { this.complain('noPoints'); return; }
    if (!this.network.sound) this.start();
    this.running = true;
    this.playState();
    requestAnimationFrame(() => this.frame());
  }

  pause() {
    this.running = false;
    this.playState();
  }

  frame() {
    if (!this.running) return;
    const began = performance.now();
    do this.epoch(); while (this.running && performance.now() - began < FRAME_MILLISECONDS);
    if (this.network.sound) this.paint();
    requestAnimationFrame(() => this.frame());
  }

  /** One pass over the points. Weights that grew beyond bounds stop it with a message. */
  epoch() {
    if (!this.train.length) { this.complain('noPoints'); return; }
    this.network.epoch(this.train.inputs, this.train.targets, this.plan);
    this.count += 1;
    if (this.network.sound) this.measure();
    else { this.pause(); this.complain('diverged'); }
  }

  complain(key) {
    this.message.replaceChildren(el('span', { t: key }));
    this.message.hidden = false;
  }

  measure() {
    const { network, plan } = this;
    const loss = ({ inputs, targets }) => network.loss(inputs, targets, plan.loss);
    const judged = this.test.length ? this.test : this.train;
    this.output.loss(loss(this.train), loss(this.test), plan.regression ? null : network.accuracy(judged.inputs, judged.targets));
  }

  paint() {
    if (!this.network?.sound || !this.host.isConnected) return;
    if (this.count === 0) { this.output.clear(); if (this.train.length) this.measure(); }
    this.net.paint(this.output.map, this.watched, this.settings.sharp);
    this.output.paint(this.train, this.test, this.settings);
    this.epochs.textContent = String(this.count).padStart(5, '0');
  }

  playState() {
    this.playButton.replaceChildren(iconButton(this.running ? 'pause' : 'play', 'run').firstChild, el('span', { t: this.running ? 'pause' : 'run' }));
  }

  point(x, y, target) {
    if (this.settings.own.length >= MOST_POINTS) { this.complain('manyPoints'); return; }
    this.settings.own.push([x, y, target]);
    this.message.hidden = true;
    this.points();
    this.paint();
    this.address();
  }

  choosePen(button, target) {
    this.output.target = target;
    for (const other of button.parentElement.children) other.setAttribute('aria-pressed', String(other === button));
  }

  /** Points from a file: x, y, and a target, a line each. */
  async load() {
    const [file] = this.file.files;
    this.file.value = '';
    if (!file) return;
    const rows = (await file.text()).split(/\r?\n/).map((line) => line.split(/[,;\t]/).map(Number)).filter((row) => row.length >= 3 && row.slice(0, 3).every(Number.isFinite));
    if (!rows.length) { this.complain('badCsv'); return; }
    const reach = Math.max(...rows.map(([x, y]) => Math.max(Math.abs(x), Math.abs(y))));
    const scale = reach > 6 ? 5.5 / reach : 1;
    this.settings.own = rows.slice(0, MOST_POINTS).map(([x, y, target]) => [x * scale, y * scale, target > 0 ? 1 : -1]);
    this.start();
    if (rows.length > MOST_POINTS) this.complain('manyPoints');
  }

  address() {
    if (!this.host.hidden && this.ready) history.replaceState(null, '', `/playground${toHash(this.settings)}`);
  }

  async copyLink() {
    this.address();
    await copy(location.href);
  }

  save() {
    download('network.py', toPython(this.settings, this.count), 'text/x-python');
  }
}


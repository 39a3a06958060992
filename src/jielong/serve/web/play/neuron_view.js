/** One neuron that decides about an evening at the cinema: weights and a threshold to turn, and a rule that learns them. */
import { el, svg } from '../shell/dom.js';
import { say } from '../shell/words.js';
import { decide, learn, rows } from './perceptron.js';

const INPUTS = ['weather', 'friend', 'film'];
const USUAL = { weights: [3, 6, 2], threshold: 5 };
/** Gates of the first two inputs; what they want of a row. */
const GATES = {
  and: { weights: [2, 2, 0], threshold: 3, wants: ([a, b]) => a & b },
  or: { weights: [2, 2, 0], threshold: 1, wants: ([a, b]) => a | b },
  nand: { weights: [-2, -2, 0], threshold: -3, wants: ([a, b]) => 1 - (a & b) },
  xor: { weights: [2, 2, 0], threshold: 1, wants: ([a, b]) => a ^ b },
};
const NODE_Y = [46, 130, 214];

export class NeuronView {
  /** onNetwork(): leads to the network, which can do what one neuron cannot. */
  constructor(onNetwork) {
    this.neuron = structuredClone(USUAL);
    this.inputs = [1, 0, 1];
    this.examples = rows(INPUTS.length);
    this.wanted = this.examples.map((row) => Number(decide(row, USUAL.weights, USUAL.threshold).fires));
    this.switches = INPUTS.map((name, place) => el('button', { type: 'button', class: 'switch', role: 'switch', on: { click: () => { this.inputs[place] = 1 - this.inputs[place]; this.draw(); } } },
      el('span', { t: `input_${name}` }), el('b', { class: 'number' })));
    this.sliders = INPUTS.map((name, place) => this.slider(['weightOf', place + 1], () => this.neuron.weights[place], (value) => { this.neuron.weights[place] = value; }));
    this.threshold = this.slider('threshold', () => this.neuron.threshold, (value) => { this.neuron.threshold = value; });
    this.picture = svg('svg', { viewBox: '0 0 420 260', class: 'neuron', role: 'img', tLabel: 'neuronPicture' });
    this.formula = el('p', { class: 'formula number', 'aria-live': 'polite' });
    this.table = el('table', { class: 'truth' });
    this.said = el('p', { class: 'said small', role: 'status' });
    this.leap = el('button', { type: 'button', t: 'toNetwork', hidden: true, on: { click: onNetwork } });
    this.host = el('section', { class: 'neuronface', hidden: true },
      el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'cinema' })), el('p', { class: 'mute', t: 'cinemaWhy' }), el('div', { class: 'neuronrow' },
        el('div', { class: 'switches' }, this.switches), this.picture), this.formula),
      el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'weights' }), el('button', { type: 'button', class: 'quiet small', t: 'usual', on: { click: () => this.set(USUAL) } })),
        el('div', { class: 'fields' }, this.sliders, this.threshold),
        el('h3', { t: 'gates' }), el('div', { class: 'row' }, Object.keys(GATES).map((name) => el('button', { type: 'button', on: { click: () => this.gate(name) } }, name.toUpperCase())))),
      el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'truth' })), el('p', { class: 'mute small', t: 'truthWhy' }), el('div', { class: 'scroll' }, this.table),
        el('div', { class: 'row' }, el('button', { type: 'button', class: 'primary', t: 'learnOnce', on: { click: () => this.learn(1) } }),
          el('button', { type: 'button', t: 'learnOn', on: { click: () => this.learn(100) } })), this.said, this.leap));
    this.draw();
    addEventListener('respeak', () => this.draw());
  }

  slider(key, get, set) {
    const output = el('b');
    const input = el('input', { type: 'range', min: -10, max: 10, step: 1, on: { input: () => { set(Number(input.value)); this.draw(); } } });
    const field = el('label', { class: 'field' }, el('span', {}, el('span', { t: key }), output), input);
    field.refresh = () => { input.value = get(); output.textContent = String(get()); };
    return field;
  }

  set({ weights, threshold }) {
    this.neuron = { weights: [...weights], threshold };
    this.said.textContent = '';
    this.leap.hidden = true;
    this.draw();
  }

  gate(name) {
    this.wanted = this.examples.map((row) => GATES[name].wants(row));
    this.set(GATES[name]);
  }

  learn(most) {
    let wrong = 0;
    let passes = 0;
    do { wrong = learn(this.neuron, this.examples, this.wanted); passes += 1; } while (wrong && passes < most);
    const still = this.examples.filter((row, place) => Number(decide(row, this.neuron.weights, this.neuron.threshold).fires) !== this.wanted[place]).length;
    this.said.textContent = still ? say(passes === 100 ? 'learnNever' : 'learnWrong', still) : say('learnDone');
    this.leap.hidden = !(still && passes === 100);
    this.draw();
  }

  draw() {
    const { weights, threshold } = this.neuron;
    const { sum, fires } = decide(this.inputs, weights, threshold);
    this.switches.forEach((button, place) => {
      button.setAttribute('aria-checked', String(Boolean(this.inputs[place])));
      button.lastChild.textContent = String(this.inputs[place]);
    });
    for (const field of [...this.sliders, this.threshold]) field.refresh();
    const terms = this.inputs.map((input, place) => `${input} × ${weights[place] < 0 ? `(${weights[place]})` : weights[place]}`).join(' + ');
    this.formula.textContent = `${terms} = ${sum} ${fires ? '≥' : '<'} ${threshold}  →  ${say(fires ? 'goes' : 'stays')}`;
    this.formula.classList.toggle('fires', fires);
    this.paint(sum, fires);
    this.fill();
  }

  paint(sum, fires) {
    const { weights, threshold } = this.neuron;
    const lines = this.inputs.flatMap((input, place) => {
      const y = NODE_Y[place];
      const weight = weights[place];
      return [svg('path', { d: `M40 ${y}C130 ${y} 140 130 222 130`, class: `${weight < 0 ? 'low' : 'high'}${input ? '' : ' off'}`, 'stroke-width': 1 + Math.abs(weight) * 0.9 }),
        svg('circle', { cx: 30, cy: y, r: 19, class: input ? 'node on' : 'node' }), svg('text', { x: 30, y: y + 5 }, String(input)),
        svg('text', { x: 112, y: y + (place - 1) * -16 - 9, class: 'weight' }, `w${place + 1} = ${weight}`)];
    });
    this.picture.replaceChildren(...lines,
      svg('path', { d: 'M290 130H344', class: fires ? 'high' : 'off', 'stroke-width': 4 }),
      svg('circle', { cx: 256, cy: 130, r: 36, class: fires ? 'node on' : 'node' }), svg('text', { x: 256, y: 126, class: 'sum' }, `Σ ${sum}`), svg('text', { x: 256, y: 146, class: 'weight' }, `${fires ? '≥' : '<'} ${threshold}`),
      svg('circle', { cx: 376, cy: 130, r: 28, class: fires ? 'node out on' : 'node out' }), svg('text', { x: 376, y: 136, class: 'sum' }, say(fires ? 'yes' : 'no')));
  }

  /** The truth table: what the neuron says of every row, and what is wanted, which can be turned. */
  fill() {
    const head = el('tr', {}, INPUTS.map((name) => el('th', { scope: 'col', t: `short_${name}` })), el('th', { scope: 'col', t: 'says' }), el('th', { scope: 'col', t: 'wanted' }));
    const focused = document.activeElement?.dataset?.row;
    const body = this.examples.map((row, place) => {
      const { fires } = decide(row, this.neuron.weights, this.neuron.threshold);
      const turn = el('button', { type: 'button', class: 'quiet', data: { row: place }, 'aria-pressed': String(Boolean(this.wanted[place])), 'aria-label': `${row.join(' ')}: ${say('wanted')}`,
        on: { click: () => { this.wanted[place] = 1 - this.wanted[place]; this.draw(); } } }, String(this.wanted[place]));
      const current = row.every((value, input) => value === this.inputs[input]);
      return el('tr', { class: current ? 'current' : null }, row.map((value) => el('td', {}, String(value))),
        el('td', { class: fires === Boolean(this.wanted[place]) ? 'right-answer' : 'wrong-answer' }, String(Number(fires))), el('td', {}, turn));
    });
    this.table.replaceChildren(el('thead', {}, head), el('tbody', {}, body));
    if (focused !== undefined) this.table.querySelector(`[data-row="${focused}"]`)?.focus();
  }
}

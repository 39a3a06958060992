/** What the models said on the way: a slider from the first to the last, and one over the steps of a stage. */
import { el, speak } from '../shell/dom.js';
import { getJson } from '../shell/api.js';

const FEW = 12;
const ORDER = ['base', 'sft', 'best_of_n', 'dpo', 'grpo', 'ppo'];

export class Samples {
  constructor() {
    this.slider = el('input', { type: 'range', min: 0, step: 1, tLabel: 'samplesSlider', on: { input: () => this.draw() } });
    this.marks = el('div', { class: 'marks small', 'aria-hidden': 'true' });
    this.list = el('div', { class: 'answers', 'aria-live': 'polite' });
    this.host = el('section', { class: 'card samples', hidden: true }, el('header', {}, el('h2', { t: 'samples' })), el('p', { class: 'mute small', t: 'samplesWhy' }),
      el('div', { class: 'slider' }, this.slider, this.marks), this.list, this.more = el('button', { type: 'button', t: 'showAll', on: { click: () => { this.all = true; this.draw(); } } }));
  }

  /** What the models of a run said. Of the same run again, after another stage is done: who is shown stays. */
  async load(run) {
    const { stages } = await getJson(`/api/runs/${encodeURIComponent(run)}/samples`);
    const models = (samples) => ORDER.filter((model) => samples.some((sample) => sample[model] !== undefined));
    // The stage that asked most models; of these the last.
    const best = stages.reduce((found, stage) => (found && models(found.samples).length > models(stage.samples).length ? found : stage), null);
    this.host.hidden = !best;
    if (!best) return;
    const shown = run === this.run ? this.models?.[this.slider.value] : null;
    if (run !== this.run) this.all = false;
    this.run = run;
    this.samples = best.samples;
    this.models = models(best.samples);
    this.slider.max = this.models.length - 1;
    this.slider.value = this.models.includes(shown) ? this.models.indexOf(shown) : this.models.length - 1;
    this.slider.hidden = this.models.length < 2;
    this.marks.replaceChildren(...this.models.map((model) => el('span', {}, model)));
    this.draw();
  }

  draw() {
    const model = this.models[this.slider.value];
    this.more.hidden = this.all || this.samples.length <= FEW;
    [...this.marks.children].forEach((mark, place) => mark.classList.toggle('now', place === Number(this.slider.value)));
    this.slider.setAttribute('aria-valuetext', model);
    this.list.replaceChildren(...(this.all ? this.samples : this.samples.slice(0, FEW)).map((sample) => el('article', {}, sample.skill ? el('small', { class: 'mute' }, sample.skill.replaceAll('_', ' ')) : null,
      el('p', { class: 'prompt' }, sample.prompt), el('p', { class: 'said' }, sample[model] || '∅'))));
  }
}

export class Spoken {
  constructor() {
    this.slider = el('input', { type: 'range', min: 0, step: 1, tLabel: 'spokenSlider', on: { input: () => this.draw() } });
    this.step = el('p', { class: 'small number' });
    this.list = el('div', { class: 'answers', 'aria-live': 'polite' });
    this.host = el('section', { class: 'card samples', hidden: true }, el('header', {}, el('h2', { t: 'spoken' })), el('p', { class: 'mute small', t: 'spokenWhy' }),
      el('div', { class: 'slider' }, this.slider, this.step), this.list);
    this.steps = [];
  }

  /** What the model of a stage said each time it was evaluated. Whoever looks at the last time sees the next one, too. */
  async load(run, stage) {
    const { stages } = await getJson(`/api/runs/${encodeURIComponent(run)}/spoken`);
    const steps = stages.find((one) => one.stage === stage)?.steps ?? [];
    const key = `${run}/${stage}`;
    const atEnd = key !== this.key || Number(this.slider.value) >= this.steps.length - 1;
    const place = this.slider.value;
    [this.key, this.steps] = [key, steps];
    this.host.hidden = !steps.length;
    if (!steps.length) return;
    this.slider.max = steps.length - 1;
    this.slider.value = atEnd ? steps.length - 1 : place;
    this.draw();
  }

  draw() {
    const { step, samples } = this.steps[this.slider.value];
    speak(this.step, 't', ['stepOf', step]);
    this.slider.setAttribute('aria-valuetext', this.step.textContent);
    this.list.replaceChildren(...samples.map(({ prompt, text }) => el('article', {}, el('p', { class: 'prompt' }, prompt), el('p', { class: 'said' }, text || '∅'))));
  }
}

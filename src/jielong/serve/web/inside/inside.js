/** Look inside: any text, or the chat, as the model reads it. */
import './words.js';
import { el, iconButton } from '../shell/dom.js';
import { modelsOf, request, send, trouble } from '../shell/api.js';
import { AttentionView } from './attention_view.js';
import { LensView } from './lens_view.js';
import { parseMaps } from './maps.js';
import { StepsView } from './steps_view.js';
import { NeighboursView, ParametersView, PositionsView } from './vectors_view.js';

const EXAMPLES = ['On Sunday Noor eats rice. Noor is a', 'The animal did not cross the street because it was too tired.', '68-23 = ', '请接龙：大学'];

/** For a translator: what it reads. */
const SENTENCES = ['我爱你。', 'I love you.', 'A man is riding a bicycle.'];

export async function mount(host, app) {
  const face = new Inside(host, app);
  await face.begin();
  return { show: () => face.shown() };
}

class Inside {
  constructor(host, app) {
    this.host = host;
    this.app = app;
    this.asked = 0;
  }

  async begin() {
    this.models = await modelsOf(this.app, this.host, () => this.begin());
    if (!this.models) return;
    const hash = new URLSearchParams(location.hash.slice(1));
    this.model = this.models.find(({ id }) => id === hash.get('model')) ?? this.models[0];
    this.translates = this.model.kind === 'encoder-decoder';
    this.made = ''; // the translation that the model was asked for, as nobody wrote one
    const examples = this.translates ? SENTENCES : EXAMPLES;
    this.text = el('textarea', { rows: 2, tLabel: 'textToLook', tHint: 'textToLook', value: hash.get('text') ?? examples[0], on: {
      keydown: (event) => { if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.look(); } } } });
    this.target = el('textarea', { rows: 2, tLabel: 'targetToLook', tHint: 'targetToLook', value: hash.get('target') ?? '', hidden: !this.translates });
    this.note = el('p', { class: 'mute small', role: 'status' });
    this.where = el('p', { class: 'fromchat small', hidden: true }, el('span', { t: 'fromChat' }), iconButton('close', 'ownText', () => { this.messages = null; this.look(); }));
    this.neighbours = new NeighboursView();
    this.steps = new StepsView((id) => this.nearest(id));
    this.attention = new AttentionView();
    this.lens = new LensView();
    this.positions = new PositionsView();
    this.parameters = new ParametersView();
    this.trouble = el('div');
    this.choice = el('select', { tLabel: 'modelToLook', hidden: this.models.length < 2, on: { change: () => this.choose(this.choice.value) } },
      this.models.map(({ id, name }) => el('option', { value: id, selected: id === this.model.id }, name)));
    const form = el('form', { class: 'card ask', on: { submit: (event) => { event.preventDefault(); this.messages = null; this.look(); } } },
      el('div', { class: 'asked' }, this.text, this.target, el('button', { class: 'primary', t: 'look' })), this.where,
      el('div', { class: 'row examples' }, this.choice, examples.map((text) => el('button', { type: 'button', class: 'small', on: { click: () => { this.text.value = text; this.messages = null; this.look(); } } }, text))), this.note);
    this.host.append(el('div', { class: 'page' }, el('h1', { class: 'sr', t: 'inside' }), form, this.trouble, this.steps.host, this.attention.host, this.lens.host,
      el('div', { class: 'two' }, this.neighbours.host, this.positions.host), this.parameters.host, el('p', { class: 'mute small caution', t: 'caution' })));
    await this.shown(true);
  }

  /** What belongs to the model and to no text. */
  async still() {
    const { id } = this.model;
    await Promise.all([this.positions.load(id), this.parameters.load(id)]).catch((error) => this.trouble.replaceChildren(trouble(error)));
  }

  /** Looks into another model. */
  async choose(id) {
    this.take(id);
    await this.look();
    await this.still();
  }

  take(id) {
    this.model = this.models.find((model) => model.id === id);
    this.choice.value = id;
    if (this.target.value.trim() === this.made) this.target.value = this.made = ''; // it was the other one's
  }

  /** Comes into sight: perhaps with a conversation from the chat. */
  async shown(first = false) {
    if (!this.models) return; // what is served could not be told yet
    const { inspect } = this.app;
    this.app.inspect = null;
    if (inspect) this.messages = inspect.messages;
    const other = inspect && inspect.model !== this.model.id && this.models.some(({ id }) => id === inspect.model);
    if (other) this.take(inspect.model);
    if (inspect || first) await this.look();
    if (other || first) await this.still();
  }

  async look() {
    const asked = ++this.asked;
    await this.translate(asked);
    if (asked !== this.asked) return;
    this.where.hidden = !this.messages;
    if (!this.messages && !this.host.hidden) history.replaceState(null, '', `/inside#${this.address()}`);
    const read = this.messages ? { messages: this.messages } : { text: this.text.value, target: this.target.value };
    const body = { model: this.model.id, ...read };
    this.host.setAttribute('aria-busy', 'true');
    try {
      const maps = parseMaps(await (await request('/api/inside/attention', { method: 'POST', body })).arrayBuffer());
      if (asked !== this.asked) return;
      this.trouble.replaceChildren();
      this.attention.set(maps.kinds);
      this.note.textContent = '';
      if (maps.cut) this.note.replaceChildren(el('span', { t: ['cutAt', maps.kinds[0].queries.length] }));
      const [lens, steps] = await Promise.all([send('POST', '/api/inside/lens', body), send('POST', '/api/inside/steps', body)]);
      if (asked !== this.asked) return;
      this.lens.set(lens);
      this.steps.set(steps);
      await this.neighbours.show(steps.ids.at(-2) ?? steps.ids[0], this.model.id);
    } catch (error) {
      if (asked === this.asked) this.trouble.replaceChildren(trouble(error, () => this.look()));
    } finally {
      if (asked === this.asked) this.host.removeAttribute('aria-busy');
    }
  }

  /** The text that is looked at, and the model where there are two. */
  address() {
    const target = this.target.value ? { target: this.target.value } : {};
    return new URLSearchParams({ text: this.text.value, ...target, ...(this.models.length > 1 ? { model: this.model.id } : {}) });
  }

  /** What a translator makes of the text, unless somebody wrote what it is to have written. */
  async translate(asked) {
    if (!this.translates || this.messages || !this.text.value.trim() || this.target.value.trim() !== this.made) return;
    try {
      const { choices } = await send('POST', '/v1/completions', { model: this.model.id, prompt: this.text.value });
      if (asked !== this.asked) return;
      this.made = choices[0].text.trim();
      this.target.value = this.made;
    } catch { /* too long, or no text: what is asked for next says so */ }
  }

  async nearest(id) {
    await this.neighbours.show(id, this.model.id);
    this.neighbours.host.scrollIntoView({ block: 'nearest', behavior: 'smooth' });
  }
}

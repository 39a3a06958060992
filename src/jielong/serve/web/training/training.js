/** Training: the runs, their stages, their curves as they grow, and what the models said on the way. */
import './words.js';
import { el, speak } from '../shell/dom.js';
import { getJson, holdsKey, trouble } from '../shell/api.js';
import { say } from '../shell/words.js';
import { Chart } from './chart.js';
import { Samples, Spoken } from './samples.js';
import { Store } from './series.js';

const EVERY_MILLISECONDS = 1000;
const LIST_EVERY = 4; // looks at the folders are dearer than looks into one file
const MOST_OVERLAID = 5;

/** What belongs into one chart, the second name dashed; in this order. The rest follows, folded. */
const PANELS = [
  ['loss', 'loss_nats', 'heldout_loss_nats'], ['bitsPerByte', 'heldout_bits_per_byte'], ['rewards', 'proxy_reward', 'gold_reward'], ['kl', 'kl_nats_per_reply'],
  ['accuracy', 'accuracy', 'heldout_accuracy'], ['replyTokens', 'reply_tokens'], ['policyEntropy', 'entropy_nats'], ['throughput', 'tokens_per_second'], ['episodes', 'episodes_per_second'],
  ['learningRate', 'learning_rate'], ['gradientNorm', 'gradient_norm'],
];

export async function mount(host) {
  const face = new Training(host);
  await face.begin();
  return { show: () => face.wake(), hide: () => face.sleep() };
}

class Training {
  constructor(host) {
    this.host = host;
    this.store = new Store();
    this.charts = new Map();
    this.view = { log: false, weight: 0.6 };
    this.timer = 0;
    this.ticks = 0;
    this.chosen = new Set(); // runs that are overlaid, by name, the first one leads
    this.stage = '';
  }

  async begin() {
    this.list = el('div', { class: 'runs' });
    this.strip = el('ol', { class: 'strip' });
    this.rules = el('div', { class: 'rules' });
    this.grid = el('div', { class: 'charts' });
    this.rest = el('details', { class: 'rest', on: { toggle: () => this.draw() } }, el('summary', { t: 'otherMetrics' }), this.restGrid = el('div', { class: 'charts' }));
    this.samples = new Samples();
    this.spoken = new Spoken();
    this.note = el('p', { class: 'mute small' });
    const log = el('input', { type: 'checkbox', on: { change: () => { this.view.log = log.checked; this.draw(); } } });
    const output = el('b', {}, '0.6');
    const weight = el('input', { type: 'range', min: 0, max: 0.98, step: 0.02, value: 0.6, on: { input: () => { this.view.weight = Number(weight.value); output.textContent = weight.value; this.draw(); } } });
    weight.value = 0.6;
    this.lead = el('h1');
    this.report = el('a', { class: 'button', target: '_blank', rel: 'opener', t: 'report' }); // opener: its tab has the key, too
    this.votes = el('p', { class: 'small votes', hidden: true });
    this.body = el('div', { class: 'trainbody' }, el('aside', {}, el('h2', { t: 'runs' }), this.list, this.votes),
      el('div', { class: 'trainmain' }, el('header', { class: 'trainhead' }, this.lead, this.report), this.strip, this.rules,
        el('div', { class: 'card tune' }, el('label', { class: 'check' }, log, el('span', { t: 'logScale' })), el('label', { class: 'field' }, el('span', {}, el('span', { t: 'smoothing' }), output), weight)),
        this.note, this.grid, this.rest, this.spoken.host, this.samples.host));
    this.none = el('div', { class: 'empty', hidden: true }, el('h2', { t: 'noRuns' }), el('p', { t: 'noRunsWhy' }), el('pre', {}, 'jielong run recipes/quickstart.toml --out runs/quickstart\njielong serve runs/quickstart'));
    this.host.append(el('div', { class: 'page wide' }, this.none, this.body));
    document.addEventListener('visibilitychange', () => (document.hidden || this.host.hidden ? this.sleep() : this.wake()));
    addEventListener('respeak', () => this.draw());
    this.awake = true;
    await this.tick();
  }

  wake() {
    if (this.awake) return;
    this.awake = true;
    this.ticks = 0;
    this.tick();
  }

  /** How many votes wait for the next reward model. */
  async countVotes() {
    const { waiting } = await getJson('/api/votes');
    this.votes.hidden = waiting === 0;
    speak(this.votes, 't', ['votesWaiting', waiting]);
  }

  sleep() {
    this.awake = false;
    clearTimeout(this.timer);
  }

  /** Looks at the runs and at what is new in their metrics; again in a second. */
  async tick() {
    clearTimeout(this.timer);
    try {
      if (!this.runs || this.ticks % LIST_EVERY === 0) {
        this.runs = (await getJson('/api/runs')).runs;
        await this.countVotes();
      }
      this.ticks += 1;
      const { runs } = this;
      this.none.hidden = runs.length > 0;
      this.body.hidden = !runs.length;
      if (runs.length) await this.follow();
      this.failed?.remove();
    } catch (error) {
      this.failed?.remove();
      this.failed = trouble(error);
      this.body.before(this.failed);
    }
    clearTimeout(this.timer);
    if (this.awake) this.timer = setTimeout(() => this.tick(), EVERY_MILLISECONDS);
  }

  async follow() {
    for (const name of this.chosen) if (!this.runs.some((run) => run.name === name)) this.chosen.delete(name);
    if (!this.chosen.size) this.choose(this.runs[0].name, false);
    const lead = this.leading();
    if (!lead.stages.some(({ name }) => name === this.stage)) this.stage = this.liveliest(lead);
    const done = `${lead.name}: ${lead.stages.filter(({ state }) => state === 'done').map(({ name }) => name)}`;
    if (done !== this.done) await this.samples.load(lead.name); // a stage that is done has left some
    this.done = done;
    this.drawRuns();
    this.drawStrip(lead);
    const grown = await Promise.all([...this.chosen].map((run) => this.fetch(run)));
    if (grown.some(Boolean)) this.draw();
    await this.listen(lead);
  }

  /** What the model says on the way: looked for when another stage is shown, and now and then while it runs. */
  async listen(lead) {
    const shown = `${lead.name}/${this.stage}: ${lead.stages.find(({ name }) => name === this.stage)?.state}`;
    if (shown === this.heard && !(shown.endsWith('running') && this.ticks % LIST_EVERY === 1)) return;
    await this.spoken.load(lead.name, this.stage);
    this.heard = shown; // behind it: what could not be told is asked for again
  }

  leading() {
    return this.runs.find(({ name }) => name === [...this.chosen][0]);
  }

  /** The stage that is worth a look: the one that runs, else the last that has metrics. */
  liveliest({ stages }) {
    const shown = stages.filter(({ metrics }) => metrics);
    return (shown.find(({ state }) => state === 'running') ?? shown.at(-1) ?? stages[0])?.name ?? '';
  }

  async fetch(run) {
    const { stage } = this;
    const kept = this.store.of(run, stage);
    const told = this.runs.find(({ name }) => name === run)?.stages.find(({ name }) => name === stage);
    if (!told?.metrics || told.state === 'done' && kept.whole) return false;
    const since = kept.cursor;
    const found = await getJson(`/api/runs/${encodeURIComponent(run)}/metrics/${encodeURIComponent(stage)}?since=${since}`);
    if (kept.cursor !== since) return false; // another look, at the press of a button, was sooner and has taken the same
    const grown = this.store.take(run, stage, found);
    kept.whole = told.state === 'done'; // its last lines were written before that was said
    return grown;
  }

  choose(name, also) {
    if (also) {
      if (this.chosen.has(name) && this.chosen.size > 1) this.chosen.delete(name);
      else if (this.chosen.size < MOST_OVERLAID) this.chosen.add(name);
    } else {
      this.chosen = new Set([name]);
      this.stage = '';
    }
  }

  async pick(name, also) {
    this.choose(name, also);
    this.draw();
    await this.tick();
  }

  drawRuns() {
    const order = [...this.chosen];
    const key = JSON.stringify([this.runs.map(({ name, stages }) => [name, stages.map(({ state }) => state)]), order, document.documentElement.lang]);
    if (key === this.drawnRuns) return;
    this.drawnRuns = key;
    this.list.replaceChildren(...this.runs.map((run) => {
      const place = order.indexOf(run.name);
      const done = run.stages.filter(({ state }) => state === 'done').length;
      const running = run.stages.some(({ state }) => state === 'running');
      const overlay = el('input', { type: 'checkbox', tLabel: ['overlay', run.name], on: { change: () => this.pick(run.name, true) } });
      overlay.checked = place >= 0;
      return el('div', { class: `runitem${place === 0 ? ' lead' : ''}` }, el('label', { class: place >= 0 ? `c${place}` : null }, overlay), el('button', { type: 'button', 'aria-current': place === 0 ? 'true' : null, on: { click: () => this.pick(run.name, false) } },
        el('span', {}, run.name), el('small', { class: 'mute' }, running ? say('state_running') : `${done}/${run.stages.length}`)));
    }));
  }

  drawStrip(run) {
    const key = JSON.stringify([run.name, run.stages, this.stage, document.documentElement.lang]);
    if (key === this.drawnStrip) return;
    this.drawnStrip = key;
    this.lead.textContent = run.name;
    this.report.hidden = !run.report;
    const name = encodeURIComponent(run.name);
    this.report.href = holdsKey() ? `/report#${name}` : `/api/runs/${name}/report`; // a link cannot send a key
    this.strip.replaceChildren(...run.stages.map((stage) => el('li', { class: stage.state }, el('button', { type: 'button', 'aria-pressed': String(stage.name === this.stage), disabled: !stage.metrics && !stage.rules.length, on: { click: () => this.show(stage.name) } },
      el('b', {}, stage.name), el('small', {}, stage.state === 'done' && stage.seconds !== null ? duration(stage.seconds) : say(`state_${stage.state}`))))));
    const { rules } = run.stages.find(({ name }) => name === this.stage) ?? { rules: [] };
    this.rules.replaceChildren(...rules.map(({ rule, passed, shown }) => el('p', { class: passed ? 'pass' : passed === false ? 'miss' : 'open' }, el('b', {}, passed ? '✓' : passed === false ? '✗' : '·'), ` ${rule}: `, el('span', {}, shown))));
  }

  async show(stage) {
    this.stage = stage;
    this.draw();
    await this.tick();
    this.draw();
  }

  draw() {
    const runs = [...this.chosen];
    const stores = runs.map((run) => this.store.of(run, this.stage));
    const names = new Set(stores.flatMap(({ names: each }) => [...each.keys()]));
    this.note.textContent = stores.some(({ sampled }) => sampled) ? say('sampledWhy') : names.size ? '' : say('noMetrics');
    const panels = PANELS.map(([key, ...wanted]) => [key, wanted.filter((name) => names.has(name))]).filter(([, wanted]) => wanted.length);
    const used = new Set(panels.flatMap(([, wanted]) => wanted));
    const others = [...names].filter((name) => !used.has(name)).map((name) => [null, [name]]);
    const place = (grid, list) => {
      const charts = list.map(([key, wanted]) => {
        const id = key ?? wanted[0];
        if (!this.charts.has(id)) this.charts.set(id, new Chart(key ? [`chart_${key}`] : wanted[0].replaceAll('_', ' ')));
        const chart = this.charts.get(id);
        chart.draw(runs.flatMap((run, number) => wanted.map((name, which) => ({ label: label(run, runs.length, name, wanted.length), colour: runs.length > 1 ? number : which, dashed: runs.length > 1 && which > 0, exact: name === 'learning_rate', series: stores[number].names.get(name) ?? { steps: [], values: [] } }))), this.view);
        return chart.host;
      });
      if (charts.length !== grid.childElementCount || charts.some((chart, number) => grid.children[number] !== chart)) grid.replaceChildren(...charts);
    };
    place(this.grid, panels);
    this.rest.hidden = !others.length;
    if (this.rest.open) place(this.restGrid, others);
  }
}

function label(run, numRuns, name, numNames) {
  const said = name.replaceAll('_', ' ');
  return numRuns > 1 ? (numNames > 1 ? `${run}: ${said}` : run) : said;
}

/** 4.2 s, 1:05, 2:03:09. */
function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds) % 60];
  return hours ? `${hours}:${String(minutes).padStart(2, '0')}:${String(rest).padStart(2, '0')}` : `${minutes}:${String(rest).padStart(2, '0')}`;
}

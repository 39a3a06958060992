/**
 * Two answers side by side, of one model or of two. Which gave which is told after the vote; the server decides the sides,
 * signs what it served, and takes one vote on it.
 */
import { announce, el } from '../shell/dom.js';
import { send, stream } from '../shell/api.js';
import { say } from '../shell/words.js';
import { Markdown } from '../markdown/render.js';

const CHOICES = ['a', 'b', 'tie', 'both_bad'];

/**
 * Two answers in a box in `log`, and the vote on them. asked: {messages, sampling, models}, see `Models.writers`.
 * onVote([{content, note}, the same of the better one]) once there is a vote; it returns what "Go on" does, or nothing. stick(): scrolls to the end.
 */
export async function comparison(log, asked, signal, { onVote, stick }) {
  const two = asked.models.length > 1;
  const box = el('article', { class: 'message comparison' }, el('h3', { class: 'sr', t: 'compare' }),
    el('p', { class: 'pairnote mute small', t: two ? 'comparesTwo' : 'comparesOne' }));
  log.append(box);
  stick();
  const watch = new ResizeObserver(stick);
  watch.observe(box);
  const { seed, ...rest } = asked.sampling;
  const body = { messages: asked.messages, ...rest, ...(two ? {} : { model: asked.models[0].id }) };
  const found = await compare(box, body, signal).catch((error) => { box.remove(); throw error; });
  watch.disconnect();
  if (!found) { box.append(el('p', { class: 'mute small', t: 'cutShort' })); return; }
  ballot(box, found, ({ choice, answers }) => {
    const next = onVote((choice === 'a' ? [1, 0] : [0, 1]).map((side) => ({ content: found.replies[side], note: { model: answers[side].model, temperature: answers[side].sampling.temperature } })));
    if (!next) return;
    const button = el('button', { type: 'button', class: 'primary', t: 'goOn', on: { click: next } });
    box.querySelector('.ballot').append(button);
    button.focus();
    stick();
  });
  announce(say('bothDone'));
  stick();
}

/**
 * Streams two answers into `host`.
 * @returns {Promise<null | {id: string, replies: string[]}>} what can be voted on; null when it was stopped
 */
async function compare(host, body, signal) {
  const sides = {};
  host.append(el('div', { class: 'sides' }, ['a', 'b'].map((name) => {
    const into = el('div', { class: 'body', dir: 'auto' });
    sides[name] = { markdown: new Markdown(into), text: '' };
    sides[name].node = el('section', { class: 'side', 'aria-busy': 'true', tLabel: `answer_${name}` },
      el('h3', {}, el('b', {}, name.toUpperCase()), el('span', { class: 'who mute small' })), into);
    return sides[name].node;
  })));
  let id = null;
  try {
    for await (const event of stream('/api/comparisons', body, signal)) {
      const side = sides[event.side];
      if (side && event.text) { side.text += event.text; side.markdown.push(event.text); }
      if (side && event.finish) side.node.removeAttribute('aria-busy');
      if (event.id) id = event.id;
    }
  } catch (error) {
    if (error.name !== 'AbortError') throw error;
  } finally {
    for (const { markdown, node } of Object.values(sides)) { markdown.flush(); node.removeAttribute('aria-busy'); }
  }
  return id && { id, replies: ['a', 'b'].map((name) => sides[name].text) };
}

/**
 * The buttons under two answers. onVote({choice, answers}) once the server has taken the vote: answers tell what wrote
 * each side.
 */
function ballot(host, { id, replies }, onVote) {
  const better = el('textarea', { rows: 3, tHint: 'betterHint', tLabel: 'betterAnswer' });
  const own = el('details', { class: 'better' }, el('summary', { t: 'betterAnswer' }), better);
  const start = (name) => { better.value = replies[CHOICES.indexOf(name)]; };
  own.addEventListener('toggle', () => { if (own.open && !better.value) start('a'); });
  const said = el('p', { class: 'mute small', role: 'status' });
  const buttons = CHOICES.map((choice) => el('button', { type: 'button', t: `vote_${choice}`, data: { choice }, on: { click: () => vote(choice) } }));
  const box = el('div', { class: 'ballot' }, el('div', { class: 'row' }, buttons), own, said);
  host.append(box);
  async function vote(choice) {
    for (const button of buttons) button.disabled = true;
    const edited = own.open && better.value.trim() && !replies.includes(better.value) ? better.value : null;
    try {
      const { answers } = await send('POST', '/api/votes', { id, choice, edited });
      box.querySelector(`[data-choice="${choice}"]`).classList.add('chosen');
      own.remove();
      said.textContent = say('voted');
      host.querySelectorAll('.who').forEach((who, place) => { who.textContent = whoText(answers[place]); });
      host.querySelectorAll('.side').forEach((side, place) => side.classList.toggle('won', CHOICES[place] === choice));
      onVote({ choice, answers });
    } catch (error) {
      said.textContent = error.status === 409 ? say('votedBefore') : error.message;
      if (![409, 403, 404].includes(error.status)) for (const button of buttons) button.disabled = false;
    }
  }
}

/** "ppo · T 0.7": what wrote an answer. */
function whoText({ model, sampling }) {
  return `${model} · T ${sampling.temperature}`;
}

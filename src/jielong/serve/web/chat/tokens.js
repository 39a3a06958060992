/** The chance of every token: colours, and a card with what the model might have said instead. */
import { el } from '../shell/dom.js';
import { say } from '../shell/words.js';
import { chance, visible } from './answers.js';

const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : '< 0.1 %');

/** Colours the tokens of an answer: the less likely, the warmer. */
export function colour(body, spans) {
  for (const node of body.querySelectorAll('.token')) {
    const span = spans[node.dataset.i];
    if (span) node.style.setProperty('--p', chance(span).toFixed(3));
  }
}

/**
 * One card for the whole thread. It opens on hover, on a tap, and on focus; arrows go from token to token, Enter goes
 * into the card, Escape closes it.
 */
export class TokenCard {
  /** spansOf(node): the spans of the answer a token stands in, or null. onBranch(node, index, alternative), null where nothing branches. */
  constructor(thread, { spansOf, onBranch }) {
    this.spansOf = spansOf;
    this.onBranch = onBranch;
    this.card = el('div', { class: 'tip tokens', role: 'dialog', tLabel: 'tokenCard', hidden: true });
    document.body.append(this.card);
    this.node = null;
    this.timer = 0;
    thread.addEventListener('pointerover', (event) => this.hover(event));
    thread.addEventListener('pointerleave', () => this.later(null, 250));
    thread.addEventListener('click', (event) => { const node = event.target.closest('.token'); if (node && !getSelection().toString()) this.open(node); });
    thread.addEventListener('focusin', (event) => { if (event.target.matches('.token')) this.open(event.target); });
    thread.addEventListener('keydown', (event) => this.key(event));
    thread.addEventListener('scroll', () => this.close(), { passive: true });
    this.card.addEventListener('pointerenter', () => clearTimeout(this.timer));
    this.card.addEventListener('pointerleave', () => this.later(null, 250));
    this.card.addEventListener('keydown', (event) => { if (event.key === 'Escape') { const { node } = this; this.close(); node?.focus(); } });
    addEventListener('keydown', (event) => { if (event.key === 'Escape') this.close(); });
    addEventListener('pointerdown', (event) => { if (!event.target.closest('.tip, .token')) this.close(); });
  }

  hover(event) {
    if (event.pointerType === 'touch') return;
    const node = event.target.closest('.token');
    if (node === this.node) clearTimeout(this.timer);
    else this.later(node, node ? (this.node ? 60 : 180) : 250);
  }

  later(node, milliseconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => (node ? this.open(node) : this.close()), milliseconds);
  }

  close() {
    clearTimeout(this.timer);
    this.node?.classList.remove('looked');
    this.node = null;
    this.card.hidden = true;
  }

  async open(node) {
    clearTimeout(this.timer);
    if (this.node === node) return;
    this.close();
    this.node = node;
    const spans = await this.spansOf(node);
    if (this.node !== node || !spans?.[node.dataset.i]?.[1].length) return;
    node.classList.add('looked');
    this.card.replaceChildren(...this.rows(node, spans));
    this.card.hidden = false;
    this.place(node);
  }

  rows(node, spans) {
    const index = Number(node.dataset.i);
    const [, entries] = spans[index];
    return entries.flatMap((entry, place) => {
      const [text, logprob, top] = entry;
      const head = entries.length > 1 ? [el('p', { class: 'mute small', t: ['tokenOf', place + 1, entries.length] })] : [];
      const known = top.some(([token]) => token === text) ? top : [...top, [text, logprob]];
      const bars = known.map(([token, value, bytes]) => {
        const p = Math.exp(value);
        const said = token === text;
        const bar = el('span', { class: 'bar-of' }, el('i'));
        bar.firstChild.style.width = `${100 * p}%`;
        return el('button', {
          type: 'button', class: said ? 'said' : null, disabled: said || !this.onBranch, 'aria-label': said || !this.onBranch ? null : say('branchFrom', token, percent(p)),
          on: { click: () => { this.close(); this.onBranch(node, index, place, [token, value, bytes]); } },
        }, el('code', {}, visible(token)), bar, el('span', { class: 'number' }, percent(p)));
      });
      return [...head, ...bars];
    }).concat(this.onBranch ? el('p', { class: 'mute small', t: 'branchHint' }) : []);
  }

  place(node) {
    const box = (node.getClientRects()[0] ?? node.getBoundingClientRect());
    const { width, height } = this.card.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left - 8, innerWidth - width - 8));
    const below = box.bottom + 6 + height < innerHeight;
    this.card.style.left = `${left}px`;
    this.card.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - height - 6)}px`;
  }

  key(event) {
    const node = event.target.closest?.('.token');
    if (!node) return;
    const all = [...node.closest('.body').querySelectorAll('.token')];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const next = all[all.indexOf(node) + step];
      if (next) { node.tabIndex = -1; next.tabIndex = 0; next.focus(); }
      event.preventDefault();
    } else if (event.key === 'Enter') {
      this.card.querySelector('button:not(:disabled)')?.focus();
      event.preventDefault();
    }
  }
}

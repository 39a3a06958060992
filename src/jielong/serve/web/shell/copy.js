/** The clipboard. */
import { announce, el } from './dom.js';
import { say } from './words.js';

/** Puts a text where it can be pasted from, and says so. */
export async function copy(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else { // it is missing where a page comes over http from another machine
    const area = el('textarea', { class: 'sr', 'aria-hidden': 'true', value: text });
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    before?.focus();
  }
  announce(say('copied'));
}

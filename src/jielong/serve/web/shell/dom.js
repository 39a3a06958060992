/**
 * Elements in one call. Text always goes in as text: nothing on this page parses HTML, so nothing a model or a person
 * writes can become markup.
 */
import { say } from './words.js';

const SVG = 'http://www.w3.org/2000/svg';
const TRANSLATED = { t: 'data-t', tLabel: 'data-t-label', tTitle: 'data-t-title', tHint: 'data-t-hint' };
const PLACES = { t: null, tLabel: 'aria-label', tTitle: 'title', tHint: 'placeholder' };

/**
 * @param {Element} node
 * @param {Record<string, any>} props class, on: {event: listener}, data: {name: value}, t / tLabel / tTitle / tHint:
 *   a key of words.js, or [key, ...values]; anything else is an attribute (false and null leave it out)
 */
function dress(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'class') node.setAttribute('class', value);
    else if (name === 'on') for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === 'data') for (const [key, each] of Object.entries(value)) node.dataset[key] = each;
    else if (name in TRANSLATED) speak(node, name, value);
    else if (name === 'value') node.value = value;
    else node.setAttribute(name, value === true ? '' : String(value));
  }
}

/** Gives an element a text of words.js that follows the language when it is switched. */
export function speak(node, place, value) {
  const [key, ...values] = Array.isArray(value) ? value : [value];
  node.setAttribute(TRANSLATED[place], values.length ? JSON.stringify([key, ...values]) : key);
  const spoken = say(key, ...values);
  if (PLACES[place]) node.setAttribute(PLACES[place], spoken);
  else node.textContent = spoken;
}

/** @returns {HTMLElement} children: nodes, or texts; null is left out */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  dress(node, props);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** @returns {SVGElement} */
export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  dress(node, props);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const PATHS = {
  send: 'M12 19V5M6 11l6-6 6 6',
  stop: 'M7 7h10v10H7z',
  plus: 'M12 5v14M5 12h14',
  menu: 'M4 7h16M4 12h16M4 17h16',
  close: 'M6 6l12 12M18 6L6 18',
  copy: 'M9 9h10v11H9zM5 15V4h10',
  check: 'M5 13l4 4L19 7',
  edit: 'M4 20h4L19 9l-4-4L4 16zM13 7l4 4',
  again: 'M20 12a8 8 0 1 1-2.5-5.800M20 3v5h-5',
  trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5',
  save: 'M12 4v11M7 11l5 5 5-5M5 20h14',
  left: 'M15 6l-6 6 6 6',
  right: 'M9 6l6 6-6 6',
  dial: 'M4 8h9M17 8h3M4 16h3M11 16h9M13 8a2 2 0 1 0 4 0 2 2 0 1 0-4 0M7 16a2 2 0 1 0 4 0 2 2 0 1 0-4 0',
  drop: 'M12 4c4 5 6 7.5 6 10a6 6 0 0 1-12 0c0-2.5 2-5 6-10z',
  pair: 'M4 5h7v14H4zM13 5h7v14h-7z',
  sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 1 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.400M17.6 17.600L19 19M5 19l1.4-1.400M17.6 6.400L19 5',
  moon: 'M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5z',
  eye: 'M2 12c3-5 6.5-7 10-7s7 2 10 7c-3 5-6.5 7-10 7s-7-2-10-7zM12 9a3 3 0 1 0 0 6 3 3 0 1 0 0-6',
  play: 'M8 5l11 7-11 7z',
  pause: 'M8 5v14M16 5v14',
  step: 'M6 5l9 7-9 7zM18 5v14',
  reset: 'M4 12a8 8 0 1 0 2.5-5.800M4 3v5h5',
  link: 'M10 14l4-4M8 11l-2 2a3.5 3.5 0 0 0 5 5l2-2M16 13l2-2a3.5 3.5 0 0 0-5-5l-2 2',
};

/** A line drawing of 24 × 24, hidden from screen readers: its button has a label. */
export function icon(name) {
  return svg('svg', { viewBox: '0 0 24 24', class: 'icon', 'aria-hidden': 'true' }, svg('path', { d: PATHS[name] }));
}

/** A button with an icon and a label that is spoken, and shown as a tip. key: of words.js. */
export function iconButton(name, key, listener, props = {}) {
  return el('button', { type: 'button', class: 'quiet', tLabel: key, tTitle: key, on: { click: listener }, ...props }, icon(name));
}

/** A colour of the style sheet as the canvas wants it. name: for example "--accent". */
export function ink(name) {
  const probe = document.getElementById('announce');
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.style.color = '';
  return found;
}

/** Calls back at most once a frame, with the latest arguments. */
export function eachFrame(callback) {
  let waiting = null;
  return (...values) => {
    if (waiting === null) requestAnimationFrame(() => { const last = waiting; waiting = null; callback(...last); });
    waiting = values;
  };
}

/** Tells screen readers, once. */
export function announce(text) {
  document.getElementById('announce').textContent = text;
}

/** Hands a file to the browser's downloads. */
export function download(name, content, type) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  el('a', { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

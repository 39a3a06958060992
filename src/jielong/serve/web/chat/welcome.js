/** What stands where nothing was said yet. */
import { el } from '../shell/dom.js';
import { ROLES, translates } from './settings.js';

/** @param {object} model who answers @param {string} system its role @param {(text: string) => void} ask @returns {HTMLElement[]} */
export function welcome(model, system, ask) {
  if (!model.chats) return [el('p', { class: 'trouble', t: 'baseModel' })];
  if (translates(model)) return [el('h2', { t: 'translatorGreeting' }), el('p', { class: 'mute', t: ['translatorWhy', model.name] })];
  const { starters } = Object.values(ROLES).find((role) => role.system === system) ?? ROLES.assistant;
  return [el('h2', { t: 'greeting' }), el('p', { class: 'mute', t: ['greetingWhy', model.name] }),
    el('div', { class: 'starters' }, starters.map((text) => el('button', { type: 'button', on: { click: () => ask(text) } }, text)))];
}

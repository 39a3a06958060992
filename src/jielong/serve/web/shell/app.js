/** The shell: which face is shown, the theme, the language, and what all faces know about the server. */
import { el, iconButton, announce } from './dom.js';
import { getJson } from './api.js';
import { language, say, setLanguage, translate } from './words.js';

/** path -> what shows it. A face's module gives `mount(host, app)`, which returns {show?, hide?}. */
const FACES = {
  chat: { path: '/', load: () => import('../chat/chat.js') },
  inside: { path: '/inside', load: () => import('../inside/inside.js') },
  training: { path: '/training', load: () => import('../training/training.js') },
  playground: { path: '/playground', load: () => import('../play/playground.js') },
};

const main = document.getElementById('face');
const mounted = new Map();
let current = null;

/** What faces share. page: what GET /api/page says, null while it is not known. inspect: {messages, model} for "Look inside". */
const app = {
  page: null,
  inspect: null,
  open(name, hash = '') {
    history.pushState(null, '', FACES[name].path + hash);
    return show(name);
  },
};

/** GET /api/page once; asked again after a failure, and while the model is being loaded. */
app.about = async () => {
  app.page ??= patiently(() => getJson('/api/page')).catch((error) => { app.page = null; throw error; });
  return app.page;
};

async function patiently(ask) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 503 || tries > 300) throw error;
      await new Promise((resolve) => { setTimeout(resolve, 700); });
    }
  }
}

const faceOf = (path) => Object.keys(FACES).find((name) => FACES[name].path === path) ?? 'chat';

async function show(name) {
  if (current === name) return;
  const before = mounted.get(current);
  if (before) { before.host.hidden = true; before.face?.hide?.(); }
  current = name;
  for (const link of document.querySelectorAll('header a[data-face]')) {
    if (link.dataset.face === name && link.closest('nav')) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.body.dataset.face = name;
  title();
  let entry = mounted.get(name);
  if (!entry) {
    entry = { host: el('div', { class: `face ${name}` }) };
    mounted.set(name, entry);
    main.append(entry.host);
    const [module] = await Promise.all([FACES[name].load(), styled(name)]);
    entry.face = await module.mount(entry.host, app);
  }
  if (current !== name) { entry.host.hidden = true; return; }
  entry.host.hidden = false;
  entry.face?.show?.();
}

/** The face's own style sheet, there before the face is. */
function styled(name) {
  return new Promise((resolve, reject) => {
    const link = el('link', { rel: 'stylesheet', href: `/web/style/${name}.css`, on: { load: resolve, error: reject } });
    document.head.append(link);
  });
}

function title() {
  document.title = `${say(current)} · jielong`;
}

function tools() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  const theme = iconButton('moon', 'theme', () => {
    root.dataset.theme = dark() ? 'light' : 'dark';
    localStorage.setItem('theme', root.dataset.theme);
    theme.setAttribute('aria-pressed', String(dark()));
    dispatchEvent(new CustomEvent('repaint'));
  }, { 'aria-pressed': String(dark()) });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => dispatchEvent(new CustomEvent('repaint')));
  const speech = el('button', { type: 'button', class: 'quiet language', lang: language() === 'zh' ? 'en' : 'zh-CN', t: 'otherLanguage', tLabel: 'switchLanguage', on: { click: () => {
    setLanguage(language() === 'zh' ? 'en' : 'zh');
    localStorage.setItem('language', language());
    translate(document);
    speech.lang = language() === 'zh' ? 'en' : 'zh-CN';
    title();
    dispatchEvent(new CustomEvent('respeak'));
    announce(say('languageIs'));
  } } });
  document.querySelector('.tools').append(speech, theme);
}

document.addEventListener('click', (event) => {
  const link = event.target.closest?.('a[data-face]');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (link.dataset.face !== current) app.open(link.dataset.face);
});
addEventListener('popstate', () => show(faceOf(location.pathname)));
translate(document);
tools();
show(faceOf(location.pathname));

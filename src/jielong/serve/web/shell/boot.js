// Runs before the first paint, so that neither theme nor language is seen to change. Not a module: those are deferred.
'use strict';
{
  const read = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const root = document.documentElement;
  const theme = read('theme');
  if (theme === 'light' || theme === 'dark') root.dataset.theme = theme;
  const spoken = read('language') ?? (navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en');
  root.lang = spoken === 'zh' ? 'zh-CN' : 'en';
}

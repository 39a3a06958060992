/** The page's own text, in English and 简体中文: the shell's and the chat's; the other faces bring theirs. {0}, {1}: values put in. */

const WORDS = {
  // the shell
  skip: ['Skip to content', '跳到正文'], pages: ['Pages', '页面'], chat: ['Chat', '聊天'], inside: ['Look inside', '看内部'],
  training: ['Training', '训练'], playground: ['Playground', '游乐场'], theme: ['Dark mode', '深色模式'],
  otherLanguage: ['中文', 'English'], switchLanguage: ['切换到中文', 'Switch to English'], languageIs: ['English', '简体中文'],
  serverGone: ['The server does not answer. Trying again…', '服务器没有响应，正在重试…'], tryAgain: ['Try again', '重试'],
  brokeOff: ['The connection broke off before the answer was whole.', '连接在回答完成之前中断了。'],
  tooLarge: ['That is more text than the server takes at once. Please send a shorter one.', '文字太长，服务器一次收不下。请发短一些。'],
  tooLong: ['That is more than the model can read at once. Please write less.', '超出了模型一次能读的长度，请写短一些。'],
  tooLongForOne: ['One of the two models cannot read so much at once. Please write less, or switch Compare off and ask the other one alone.', '其中一个模型一次读不了这么多。请写短一些，或关闭“比较”，只问另一个。'],
  apiKey: ['API key', 'API 密钥'], apiKeyWhy: ['This server wants a key. It is kept for this tab alone.', '此服务器需要密钥，仅保存在本标签页。'],
  enter: ['Enter', '进入'], close: ['Close', '关闭'], copy: ['Copy', '复制'], copied: ['Copied', '已复制'], cancel: ['Cancel', '取消'],
  table: ['Table', '表格'], report: ['Report', '报告'],
  // chat
  conversations: ['Conversations', '对话列表'], conversation: ['Conversation', '对话'], newChat: ['New chat', '新对话'], search: ['Search', '搜索'],
  today: ['Today', '今天'], thisWeek: ['This week', '本周'], before7: ['Earlier', '更早'], untitled: ['Untitled', '未命名'],
  nothingFound: ['Nothing found', '没有找到'], noChats: ['What you talk about is kept here.', '聊过的内容会保存在这里。'],
  moreOf: ['More: {0}', '更多：{0}'], rename: ['Rename', '重命名'], remove: ['Delete', '删除'], removeSure: ['Delete this conversation?', '删除这段对话？'],
  saveMarkdown: ['Save as Markdown', '存为 Markdown'], saveJson: ['Save as JSON', '存为 JSON'],
  you: ['You', '你'], model: ['Model', '模型'], send: ['Send', '发送'], stop: ['Stop (Esc)', '停止 (Esc)'], askHint: ['Write a message', '写点什么'],
  mistakes: ['A small model makes mistakes. Nothing you write leaves this server.', '小模型会出错。你写的内容不会离开这台服务器。'],
  greeting: ['What shall we talk about?', '聊点什么？'], greetingWhy: ['{0} goes on where you stop: one token at a time.', '{0} 会接着你的话往下说，一次一个词元。'],
  translatorGreeting: ['What shall I translate?', '翻译什么？'], translatorHint: ['Write a sentence', '写一句话'],
  translatorWhy: ['{0} is a translator: it reads one sentence at a time and writes it in its other language. It does not remember what came before.', '{0} 是翻译模型：一次读一句话，用另一种语言写出来，不记得前面说过什么。'],
  beam: ['Beam', '束宽'], beam_why: ['How many beginnings of the translation are kept at each step, while the temperature is 0', '温度为 0 时，每一步保留多少个候选开头'],
  baseModel: ['This is a base model: it continues text and has not learned to answer. Look inside it, or serve one that was taught.', '这是基础模型，只会续写，还没学会回答。可以去看看它的内部，或者启动一个教过的模型。'],
  edit: ['Edit', '编辑'], sendEdited: ['Send', '发送'], again: ['Answer again', '重新回答'], lookInside: ['Look inside', '看内部'],
  before: ['The one before', '上一个'], after: ['The next one', '下一个'], earlier: ['Show earlier messages', '显示更早的消息'],
  actsAs: ['Role: {0}', '角色：{0}'], forgotten: ['The model no longer sees what is above: its context is full.', '以上内容模型已看不到：上下文满了。'],
  saidNothing: ['(it said nothing)', '（没有回答）'], answerDone: ['Answer: {0}', '回答：{0}'],
  colours: ['Chances', '概率'], compare: ['Compare', '比较'], settings: ['Settings', '设置'], systemPrompt: ['System prompt', '系统提示'],
  systemHint: ['Who the model is to be, and how it is to answer', '告诉模型它是谁、该怎样回答'], role: ['Role', '角色'],
  role_assistant: ['Assistant', '助手'], role_translator: ['Translator', '翻译'], role_terminal: ['Linux terminal', 'Linux 终端'], role_own: ['your own', '自定义'],
  sampling: ['Sampling', '采样'], usual: ['Reset', '恢复默认'], seed: ['Seed', '随机种子'], seedHint: ['a new one each time', '每次不同'],
  temperature: ['Temperature', '温度'], temperature_why: ['0 always takes the likeliest token; higher is bolder', '0 总取最可能的词元；越高越大胆'],
  top_p: ['Top-p', 'Top-p'], top_p_why: ['Draw from the likeliest tokens that together have this chance', '只在累计概率达到该值的最可能词元中抽取'],
  top_k: ['Top-k (0: all)', 'Top-k（0：全部）'], top_k_why: ['Draw from this many of the likeliest tokens', '只在最可能的这么多个词元中抽取'],
  min_p: ['Min-p', 'Min-p'], min_p_why: ['Leave out tokens less likely than this share of the likeliest', '去掉概率低于最可能词元该比例的词元'],
  repetition_penalty: ['Repetition penalty', '重复惩罚'], repetition_penalty_why: ['Above 1 what was said becomes less likely', '大于 1 时，说过的词更不容易再出现'],
  max_tokens: ['Longest answer (tokens)', '最长回答（词元）'], max_tokens_why: ['The answer is cut after so many tokens', '超过这么多词元就截断'],
  tokenCard: ['What else it might have said', '它还可能说什么'], tokenOf: ['token {0} of {1}', '第 {0}/{1} 个词元'],
  branchFrom: ['go on with {0}, {1}', '改用 {0} 继续，{1}'], branchHint: ['Choose another to branch off', '点选另一个，从这里分支'],
  answer_a: ['Answer A', '回答 A'], answer_b: ['Answer B', '回答 B'], vote_a: ['A is better', 'A 更好'], vote_b: ['B is better', 'B 更好'], vote_tie: ['Tie', '一样好'],
  vote_both_bad: ['Both bad', '都不好'], betterAnswer: ['Write a better answer', '写一个更好的回答'], betterHint: ['What it should have said', '它本该怎么说'],
  voted: ['Thank you. The vote is written down for the next reward model.', '谢谢，这一票已记下，用于训练下一个奖励模型。'],
  comparesTwo: ['Two models answer, in random order. Their names come after the vote.', '两个模型各答一边，左右随机，投票后才显示名字。'], comparesOne: ['One model answers twice.', '同一个模型回答两次。'],
  bothDone: ['Both answers are here. Which one is better?', '两个回答都好了，哪个更好？'], whichModel: ['Who answers', '由谁回答'], twoModels: ['two models', '两个模型'],
  votedBefore: ['There is a vote on these two already.', '这两个回答已经投过票了。'], cutShort: ['Stopped: answers that were cut short are not voted on.', '已停止：没说完的回答不参与投票。'],
  goOn: ['Go on', '继续聊'],
};

let spoken = document.documentElement.lang.startsWith('zh') ? 'zh' : 'en';

/** @returns {'en' | 'zh'} */
export const language = () => spoken;

export function setLanguage(name) {
  spoken = name;
  document.documentElement.lang = name === 'zh' ? 'zh-CN' : 'en';
}

/** Adds a face's own words, key -> [English, Chinese]. */
export const teach = (words) => Object.assign(WORDS, words);

/** The text of a key in the present language. Raises for a key that is not there: a bug, which tests look for. */
export function say(key, ...values) {
  const pair = WORDS[key];
  if (!pair) throw new Error(`no words.js has ${key}`);
  return pair[spoken === 'zh' ? 1 : 0].replace(/\{(\d)\}/g, (_, place) => values[place] ?? '');
}

const PLACES = [['data-t', null], ['data-t-label', 'aria-label'], ['data-t-title', 'title'], ['data-t-hint', 'placeholder']];

/** Says everything below `root` anew, in the present language. */
export function translate(root) {
  for (const [mark, attribute] of PLACES) {
    for (const node of root.querySelectorAll(`[${mark}]`)) {
      const written = node.getAttribute(mark);
      const text = written.startsWith('[') ? say(...JSON.parse(written)) : say(written);
      if (attribute) node.setAttribute(attribute, text); else node.textContent = text;
    }
  }
}

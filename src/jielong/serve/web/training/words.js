/** What Training says, in English and 简体中文. */
import { teach } from '../shell/words.js';

teach({
  runs: ['Runs', '运行'], noRuns: ['No runs here yet', '还没有运行'], noRunsWhy: ['Serve a run folder to watch it:', '启动一个运行文件夹即可观看：'], overlay: ['Overlay {0}', '叠加 {0}'], 
  state_done: ['done', '完成'], state_running: ['running', '进行中'], state_stopped: ['stopped', '已停'], state_waiting: ['waiting', '等待'], logScale: ['Log scale', '对数坐标'], smoothing: ['Smoothing', '平滑'],
  otherMetrics: ['All other metrics', '其他指标'], noMetrics: ['This stage has left no curves.', '这个阶段没有曲线。'], sampledWhy: ['The file is long: an even sample of its lines is drawn.', '文件很长，只画均匀抽样的行。'],
  spoken: ['While it learns', '学习途中'], spokenWhy: ['How the model goes on from the same beginnings, each time it was evaluated in this stage. Move the slider.', '这个阶段每次评估时，模型对同样开头的续写。拖动滑块查看。'], spokenSlider: ['Which step', '哪一步'], stepOf: ['step {0}', '第 {0} 步'],
  showAll: ['Show all', '显示全部'], samples: ['What the models say', '模型怎么说'], samplesWhy: ['The same prompts, before and after each stage. Move the slider.', '同样的提问，各阶段前后的回答。拖动滑块。'], samplesSlider: ['Which model', '哪个模型'],
  chart_loss: ['Loss (nats)', '损失 (nats)'], chart_bitsPerByte: ['Held-out bits per byte', '留出集每字节比特'], chart_rewards: ['Reward: proxy and gold', '奖励：代理与真实'], chart_kl: ['Distance from the start (KL, nats a reply)', '与起点的距离（KL，每回复 nats）'],
  chart_accuracy: ['Accuracy', '准确率'], chart_replyTokens: ['Tokens a reply', '每回复词元数'], chart_policyEntropy: ['Entropy (nats)', '熵 (nats)'], chart_throughput: ['Tokens a second', '每秒词元'], chart_episodes: ['Episodes a second', '每秒回合'],
  chart_learningRate: ['Learning rate', '学习率'], chart_gradientNorm: ['Gradient norm', '梯度范数'], votesWaiting: ['{0} votes for the next reward model', '{0} 票，留给下一个奖励模型'],
});

"""The best strengths by grid, and what `learn.weight_find` suggests: `python nbs/results/strength.py`, about half an hour on one core; it goes on where it stopped"""
import json, sys, time, warnings
from pathlib import Path
warnings.simplefilter('ignore')
from fastai.vision.all import *
from fastai.tabular.all import *
from sklearn.datasets import load_diabetes
from latentreg_fastai.all import *
from latentreg_fastai.papers import *

FILE = Path(__file__).with_suffix('.jsonl')

def digits(seed):
    return Learner(digits_dls(300, 1000, device='cpu'), small_cnn(), loss_func=CrossEntropyLossFlat(), metrics=[error_rate,nll])

def mnist(seed):
    return Learner(mnist_dls(1000, 4000, device='cpu'), mlp(width=256), loss_func=CrossEntropyLossFlat(), metrics=[error_rate,nll])

def diabetes(seed):
    "442 patients, a third of them to judge; the target is the progression of the disease, scaled to mean 0 and deviation 1"
    df = load_diabetes(as_frame=True).frame
    df['target'] = (df.target - df.target.mean())/df.target.std()
    valid = np.random.default_rng(0).permutation(len(df))[:147].tolist()
    dls = TabularDataLoaders.from_df(df, procs=[Normalize], cont_names=list(df.columns[:-1]), y_names='target', y_block=RegressionBlock(),
                                     valid_idx=valid, bs=32, device='cpu')
    return tabular_learner(dls, layers=[100,50], metrics=mse)

def nll(pred, *yb): return F.cross_entropy(pred, *yb)

METHODS = {'cw-VR': VarianceRegularizer, 'VR': partial(VarianceRegularizer, classwise=False),
           'cw-CR': CovarianceRegularizer, 'CR': partial(CovarianceRegularizer, classwise=False),
           'ITRA-c split': partial(ITRA, source='split'), 'CenterLoss': CenterLoss, 'ActivationL1': ActivationL1}
# what makes a learner, epochs, rate, the methods, the seeds of the grid
TASKS = dict(digits=(digits, 40, 1e-2, METHODS, 5), diabetes=(diabetes, 20, 5e-3, {k: METHODS[k] for k in ('VR','CR','ActivationL1')}, 5),
             mnist=(mnist, 30, 2e-3, METHODS, 3))
WEIGHTS = dict.fromkeys(METHODS, (.01,1e3)) | {'ITRA-c split': (.01,100), 'CenterLoss': (1e-3,100), 'ActivationL1': (1e-3,100)}

def grid(low, high): return [float(f'{w:.3g}') for w in 10**np.arange(np.log10(low), np.log10(high)+.01, .5)]

class OnlyLast(Callback):
    "Validates after the last epoch alone"
    def before_validate(self):
        if self.epoch < self.n_epoch-1: raise CancelValidException

def run(task, method, weight, seed):
    make,epochs,lr,methods,_ = TASKS[task]
    set_seed(seed)
    learn = make(seed)
    for dl in learn.dls.loaders: dl.rng.seed(seed)
    cbs = [] if method == 'baseline' else methods[method](weight=weight)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=L(OnlyLast())+L(cbs))
    return dict(zip(('mse',) if task == 'diabetes' else ('error','nll'), learn.recorder.values[-1][2:]))

def find(task, method, seed):
    make,_,lr,methods,_ = TASKS[task]
    set_seed(seed)
    learn = make(seed)
    return learn.weight_find(methods[method](), lr=lr, show_plot=False, seed=seed).record()

if __name__ == '__main__':
    done = [json.loads(l) for l in FILE.read_text().splitlines()] if FILE.exists() else []
    key = lambda r: tuple(r.get(k) for k in ('kind','task','method','weight','seed')) if r['kind'] == 'grid' else tuple(r[k] for k in ('kind','task','method','seed'))
    seen = {key(r) for r in done}
    todo = [dict(kind='grid', task=t, method=m, weight=w, seed=s) for t,(_,_,_,ms,n) in TASKS.items() for s in range(n)
            for m in ('baseline',*ms) for w in ([0.] if m == 'baseline' else grid(*WEIGHTS[m]))]
    if 'grid' not in sys.argv[1:]:
        todo += [dict(kind='find', task=t, method=m, seed=s) for t,(_,_,_,ms,_) in TASKS.items() for m in ms for s in range(3)]
    with FILE.open('a') as f:
        for r in todo:
            if key(r) in seen: continue
            start = time.perf_counter()
            try: r |= run(r['task'], r['method'], r['weight'], r['seed']) if r['kind'] == 'grid' else find(r['task'], r['method'], r['seed'])
            except ValueError as e: r |= dict(failed=str(e))   # a strength at which training diverges
            f.write(json.dumps(r | dict(seconds=round(time.perf_counter()-start, 2)))+'\n'); f.flush()

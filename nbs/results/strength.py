"""The best strengths by grid, and what `learn.weight_find` suggests: `python nbs/results/strength.py`, about half an hour on one core; it goes on where it stopped"""
import itertools, json, sys, time, warnings
from pathlib import Path
warnings.simplefilter('ignore')
from fastai.vision.all import *
from fastai.tabular.all import *
from sklearn.datasets import load_breast_cancer,load_diabetes
from latentreg_fastai.all import *
from latentreg_fastai.papers import *

FILE = Path(__file__).with_suffix('.jsonl')

def digits(seed):
    return Learner(digits_dls(300, 1000, device='cpu'), small_cnn(), loss_func=CrossEntropyLossFlat(), metrics=[error_rate,nll])

def mnist(seed):
    return Learner(mnist_dls(1000, 4000, device='cpu'), mlp(), loss_func=CrossEntropyLossFlat(), metrics=[error_rate,nll])

def diabetes(seed):
    "442 patients, a third of them to judge; the target is the progression of the disease, scaled to mean 0 and deviation 1"
    df = load_diabetes(as_frame=True).frame
    df['target'] = (df.target - df.target.mean())/df.target.std()
    valid = np.random.default_rng(0).permutation(len(df))[:147].tolist()
    dls = TabularDataLoaders.from_df(df, procs=[Normalize], cont_names=list(df.columns[:-1]), y_names='target', y_block=RegressionBlock(),
                                     valid_idx=valid, bs=32, device='cpu')
    return tabular_learner(dls, layers=[100,50], metrics=mse)

def cancer(seed):
    "569 samples of breast tissue in two classes, by 30 measures of their cells; 200 to train on"
    df = load_breast_cancer(as_frame=True).frame
    df['target'] = df.target.astype(str)
    valid = np.random.default_rng(0).permutation(len(df))[:369].tolist()
    dls = TabularDataLoaders.from_df(df, procs=[Normalize], cont_names=list(df.columns[:-1]), y_names='target', y_block=CategoryBlock(),
                                     valid_idx=valid, bs=32, device='cpu')
    return tabular_learner(dls, layers=[100,50], metrics=[error_rate,nll])

def nll(pred, y): return F.cross_entropy(pred, y.view(-1).long())

METHODS = {'cw-VR': VarianceRegularizer, 'VR': partial(VarianceRegularizer, classwise=False),
           'cw-CR': CovarianceRegularizer, 'CR': partial(CovarianceRegularizer, classwise=False),
           'ITRA-c split': partial(ITRA, source='split'), 'CenterLoss': CenterLoss, 'ActivationL1': ActivationL1}
SEEDS = 3
# what makes a learner, epochs, rate, the methods
TASKS = dict(digits=(digits, 40, 1e-2, METHODS), diabetes=(diabetes, 20, 5e-3, {k: METHODS[k] for k in ('VR','CR','ActivationL1')}),
             mnist=(mnist, 20, 5e-3, METHODS), cancer=(cancer, 20, 5e-3, METHODS))
WEIGHTS = {'cw-VR': (.0316,316), 'VR': (.0316,316), 'cw-CR': (.1,1e3), 'CR': (.1,1e3), 'ITRA-c split': (.0316,10), 'CenterLoss': (.00316,10), 'ActivationL1': (.01,10)}

def grid(low, high): return [float(f'{10**(i/2):.3g}') for i in range(round(2*math.log10(low)), round(2*math.log10(high))+1)]   # factors of 3.16

class OnlyLast(Callback):
    "Validates after the last epoch alone"
    def before_validate(self):
        if self.epoch < self.n_epoch-1: raise CancelValidException

def run(task, method, weight, seed):
    make,epochs,lr,methods = TASKS[task]
    set_seed(seed)
    learn = make(seed)
    for dl in learn.dls.loaders: dl.rng.seed(seed)
    cbs = [] if method == 'baseline' else methods[method](weight=weight)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=L(OnlyLast())+L(cbs))
    return dict(zip(('mse',) if task == 'diabetes' else ('error','nll'), learn.recorder.values[-1][2:]))

def find(task, method, seed):
    make,_,lr,methods = TASKS[task]
    set_seed(seed)
    learn = make(seed)
    learn.remove_cb(ProgressCallback)
    found = learn.weight_find(methods[method](), lr=lr, show_plot=False, seed=seed)
    short = lambda d: {k: float(f'{v:.4g}') for k,v in d.items()}
    return dict(weight=found.weight, limit=float(f'{found.limit:.3g}'), note=found.note, place=found.place, start=short(found.start),
                table=[dict(weight=w) | short(r) for w,r in found.table.iterrows()])

if __name__ == '__main__':
    done = [json.loads(l) for l in FILE.read_text().splitlines()] if FILE.exists() else []
    key = lambda r: tuple(r.get(k) for k in ('kind','task','method','weight','seed')) if r['kind'] == 'grid' else tuple(r[k] for k in ('kind','task','method','seed'))
    seen = {key(r) for r in done}
    todo = [r for s,(t,(*_,ms)) in itertools.product(range(SEEDS), TASKS.items()) for m in ('baseline',*ms)
            for r in [*[dict(kind='grid', task=t, method=m, weight=w, seed=s) for w in ([0.] if m == 'baseline' else grid(*WEIGHTS[m]))],
                      *[dict(kind='find', task=t, method=m, seed=s)][:m != 'baseline']]]
    with FILE.open('a') as f:
        for r in todo:
            if key(r) in seen or (sys.argv[1:] and r['kind'] not in sys.argv[1:]): continue
            start = time.perf_counter()
            try: r |= run(r['task'], r['method'], r['weight'], r['seed']) if r['kind'] == 'grid' else find(r['task'], r['method'], r['seed'])
            except ValueError as e: r |= dict(failed=str(e))   # a strength at which training diverges
            f.write(json.dumps(r | dict(seconds=round(time.perf_counter()-start, 2)))+'\n'); f.flush()

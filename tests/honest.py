"""Is the choice honest? Comparisons in which no method does anything, and what they are called.

    python tests/honest.py --out nbs/results/honest.jsonl

Each of 200 comparisons has nine methods that draw random numbers and do nothing with them, so that their runs differ from the baseline's by
chance alone: other dropout. Four of the methods have grids of three. Every other comparison has a budget, in units of runs, too small for
all grids and rows, so that grids are thinned and methods dropped. A line of the file is a comparison; the same command goes on where it
stopped. At the end it says in how many of them a method was called better than the baseline, or worse.
"""
import argparse, contextlib, gc, io, json, tempfile, time
from scipy.stats import binom
from fastai.vision.all import *
from latentreg_fastai.bench import *
from latentreg_fastai.bench import plan as plan_module
from latentreg_fastai.data.load import tensor_dls

N,NULLS,BUDGETS = 200,9,(26,34,42)

class Null(Callback):
    "Draws random numbers in each batch and does nothing with them"
    run_valid = False
    def __init__(self, n, more=0): self.n = n + more
    def before_batch(self): torch.rand(self.n)

class NoValidation(Callback):
    def before_validate(self): raise CancelValidException

class Wait(Callback):
    "Makes each step longer by `s` seconds"
    run_valid = False
    def __init__(self, s): self.s = s
    def before_batch(self): time.sleep(self.s)

class Work(Wait):
    "Takes `s` seconds of the processor in each step"
    def before_batch(self):
        end = time.process_time() + self.s
        while time.process_time() < end: pass

def make_dls(i):
    "Three classes that overlap: 240 rows to train on, and 4,000 that judge"
    g = torch.Generator().manual_seed(i)
    centres = torch.randn(3, 10, generator=g)*.6
    def rows(n):
        y = torch.randint(3, (n,), generator=g)
        return torch.randn(n, 10, generator=g) + centres[y],y
    return tensor_dls(rows(240), rows(4000), bs=80, val_bs=4000, device='cpu')

def learner_of(dls):
    def learner(seed):
        model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(.5), nn.Linear(16, 3))
        return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=error_rate)
    return learner

def fit(learn, cbs): learn.fit(3, 2e-2, cbs=[*cbs, NoValidation()])

def nulls(n=NULLS): return {f'null {i}': Grid(Null, n=i, more=(0,20,40)) if i <= 4 else Null(i) for i in range(1, n+1)}

@contextlib.contextmanager
def clock_of_runs(cost=lambda r: 1.):
    "A context in which time goes on by `cost` of its record with each run, and by nothing else"
    now,trial = [0.],Experiment.trial
    def timed(self, t):
        rec = trial(self, t)
        rec['seconds'] = cost(rec)
        now[0] += rec['seconds']
        return rec
    plan_module.time,Experiment.trial = SimpleNamespace(time=lambda: now[0]),timed
    try: yield now
    finally: plan_module.time,Experiment.trial = time,trial

def called(result):
    "The methods that are called better and worse, as the advice has it"
    t = result.tables[None]
    sure = t[t.p_holm < .05]
    better,worse = list(sure.index[sure.gain > 0]),list(sure.index[sure.gain < 0])
    assert bool(better) == ('Better than the baseline' in result.advice) and bool(worse) == ('Worse than the baseline' in result.advice)
    return better,worse

def comparison(i, methods=None, budget=None, folder=None, fit=fit):
    "One comparison, with seeds of its own; its result"
    with contextlib.ExitStack() as stack:
        folder = folder or stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(clock_of_runs())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        write,Comparison.write = Comparison.write,lambda self: []   # no pictures
        stack.callback(setattr, Comparison, 'write', write)
        return compare(learner_of(make_dls(i)), fit, methods or nulls(), seeds=range(10*i, 10*i+5), out=folder, budget=budget)

def budget_of(i): return BUDGETS[i//2 % len(BUDGETS)] if i % 2 else None

def line(i):
    "What comes of comparison `i`"
    start,budget = time.time(),budget_of(i)
    result = comparison(i, budget=budget)
    t,(better,worse) = result.tables[None].drop('baseline'),called(result)
    return dict(comparison=i, budget=budget, runs=len(result.records), strengths=sum(r['stage'] == 'strength' for r in result.records),
                tested=int(t.p.notna().sum()), better=better, worse=worse, least_p=round(float(t.p.min()), 5), least_holm=round(float(t.p_holm.min()), 5),
                error=round(float(result.tables[None].error['baseline']), 3), gain_sd=round(float(t.gain_sd.mean()), 3),
                failed=sum(map(failed, result.records)), seconds=round(time.time()-start, 1))

def lines_of(file): return [json.loads(l) for l in Path(file).read_text(encoding='utf8').splitlines()] if Path(file).exists() else []

def within(k, n, p=.05):
    "Are `k` of `n` no more than chance gives, in 39 of 40 cases, where each has probability `p`?"
    return k <= binom.ppf(.975, n, p)

def counts(lines): return dict(n=len(lines), better=sum(bool(l['better']) for l in lines), worse=sum(bool(l['worse']) for l in lines))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', default='honest.jsonl', help='the file of lines')
    p.add_argument('--n', type=int, default=N, help='how many comparisons')
    a = p.parse_args()
    torch.set_num_threads(1)
    gc.collect(); gc.freeze()
    for i in sorted({*range(a.n)} - {l['comparison'] for l in lines_of(a.out)}):
        with open(a.out, 'a', encoding='utf8') as f: f.write(json.dumps(line(i))+'\n')
    for kind,mine in (('without a budget', lambda l: l['budget'] is None), ('with a budget', lambda l: l['budget'] is not None), ('all', lambda l: True)):
        c = counts([l for l in lines_of(a.out) if mine(l)])
        ok = 'within' if within(c['better'], c['n']) else 'BEYOND'
        print(f"{kind}: {c['n']} comparisons; a method was called better in {c['better']}, {ok} the bound, and worse in {c['worse']}")

if __name__ == '__main__': main()

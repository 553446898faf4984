"""Which callbacks go together: every pair is tried in a small fit, and the page `nbs/companions.ipynb` says what came of it.

    python tests/pairs.py        # writes the table and the notes into the page"""
import json, sys
from pathlib import Path
from common import *

PAGE = Path(__file__).parents[1]/'nbs/companions.ipynb'
OURS = {
    'ManifoldMixup': ManifoldMixup, 'VarMixup': lambda: VarMixup(VAE), 'SemiSupervisedMixup': lambda: SemiSupervisedMixup(UNLABELED, rampup=0.),
    'PhantomEmbedding': PhantomEmbedding, "PhantomEmbedding, 'batch'": lambda: PhantomEmbedding(source='batch'),
    'ITRA': lambda: ITRA(warmup=0.), 'ITRA, separate': lambda: ITRA(separate=True, warmup=0.), "ITRA, 'split'": lambda: ITRA(source='split', warmup=0.),
    "ITRA, 'queue'": lambda: ITRA(source='queue', warmup=0.), 'ITRA, classwise=False': lambda: ITRA(classwise=False, warmup=0.),
    'cw-VR': VarianceRegularizer, 'cw-CR': CovarianceRegularizer, 'CenterLoss': CenterLoss, 'VR': lambda: VarianceRegularizer(classwise=False),
    'CR': lambda: CovarianceRegularizer(classwise=False), 'ActivationL1': ActivationL1, 'WeightL1': WeightL1, 'DisturbLabel': lambda: DisturbLabel(.3), 'LatentMonitor': lambda: LatentMonitor(2)}
FASTAI = {'MixUp': MixUp, 'CutMix': CutMix, 'GradientAccumulation': lambda: GradientAccumulation(16), 'MixedPrecision': MixedPrecision}

# Why some are refused: what the error says, and the reason
REASONS = {
    'mixes the batch too':       'Both mix the batch, and the second would mix mixtures whose targets the first knows nothing of.',
    'would mix rows that belong apart': 'One adds rows to the batch (partners, a second batch, unlabelled samples), and the other would mix them with rows of other classes or without labels.',
    'adds rows to the batch too': 'Both add rows to the batch, and each would take those of the other for the batch.',
    'the smaller part may be':   "In CutMix's images the class of the label may have any share of the picture, also a small one, so their features are none of that class's.",
    'labels that are not those of their cluster': 'A phantom is the mean of one class, and after DisturbLabel the label of a sample is not that of its partners.',
    'gives one of two batches other labels': "Only the first of the two batches has disturbed labels, so features of different classes would be aligned. (`source='split'` and `'queue'` have them in both.)"}

# What goes together and is to be known: which, beside which, and what
BY_CLASS = {'ITRA','ITRA, separate',"ITRA, 'split'","ITRA, 'queue'",'cw-VR','cw-CR','CenterLoss'}
NOTES = [
    (BY_CLASS, {'ManifoldMixup','VarMixup','MixUp'}, 'The class-wise term sees mixed rows. Each belongs to the class of its label by at least a half, since the larger of λ and 1−λ is the share of the row itself; classes come out wider than they are.'),
    (BY_CLASS - {'ITRA','ITRA, separate'}, {'SemiSupervisedMixup'}, 'As with mixing; the unlabelled rows are no part of the class-wise term.'),
    (BY_CLASS - {'ITRA','ITRA, separate'}, {'DisturbLabel'}, 'The class-wise term goes by the disturbed labels, as the loss does.'),
    ({'DisturbLabel'}, {'MixUp','CutMix'}, 'Labels are disturbed first, so that the partners have disturbed labels too.'),
    ({*OURS} - {'WeightL1','DisturbLabel','ManifoldMixup','VarMixup','LatentMonitor'}, {'GradientAccumulation'}, 'A term is computed from each batch as it is loaded, not from those whose gradients are accumulated; it is divided as the loss is.'),
    ({'LatentMonitor'}, {*OURS,*FASTAI} - {'LatentMonitor','GradientAccumulation','MixedPrecision'}, 'The monitor measures the batch as it was loaded, before the other acts.')]

def attempt(make, beside)->str: # '' where the pair trains
    "What the error says, where one of the two refuses the other"
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,6), nn.ReLU(), nn.Linear(6,3)))
    before,mine,loss = weights(learn),list(learn.cbs),learn.loss_func
    try: learn.fit(1, 1e-2, cbs=[make(), beside()])
    except (ValueError,TypeError) as e:
        said = str(e).splitlines()[-1].strip()
        assert same(before, weights(learn)), f'refused after training: {said}'
    else:
        said = ''
        assert all(v.isfinite().all() for v in weights(learn).values()) and not same(before, weights(learn))
        for name,term in getattr(learn.recorder, 'terms', {}).items(): assert any(map(math.isfinite, term)), f'{name} was never computed'
    assert list(learn.cbs) == mine and learn.loss_func is loss and not hooks(learn.model)
    return said

def pairs(): return [(a,b) for i,a in enumerate(OURS) for b in [*[*OURS][i+1:],*FASTAI]]

def outcome(a, b, swap=False)->str: # '✓', '✓' and a letter, or '✗' and a number
    both = [OURS[a],(OURS|FASTAI)[b]]
    said = attempt(*both[::-1] if swap else both)
    why = [i for i,r in enumerate(REASONS) if r in said]
    assert len(why) == bool(said), f'{a} beside {b}: {said}'
    note = next((i for i,(x,y,_) in enumerate(NOTES) if (a in x and b in y) or (b in x and a in y)), None)
    return f'✗{why[0]+1}' if said else '✓' if note is None else f'✓{chr(97+note)}'

def cells(): return json.loads(PAGE.read_text())['cells']
def marker(i): return f'<!-- {i} -->'
def table(results)->str:
    "Rows: ours; columns: the other ones"
    cols,res = [*OURS,*FASTAI],{**results, **{(b,a): v for (a,b),v in results.items()}}
    short = lambda n: n.replace(', ', '<br>')
    lines = [f"| | {' | '.join(map(short, cols[1:]))} |", '|---' * len(cols) + '|']
    for i,a in enumerate(OURS): lines.append(f"| **{a}** | {' | '.join(res.get((a,b), '·') if cols.index(b) > i else '' for b in cols[1:])} |")
    return '\n'.join([marker('table'), *lines])
def notes()->str:
    return '\n'.join([marker('notes'), *[f'{i}. {t}' for i,t in enumerate(REASONS.values(), 1)], '', *[f'- **{chr(97+i)}** {t}' for i,(_,_,t) in enumerate(NOTES)]])

def written(name)->str: return next(s for c in cells() if (s := ''.join(c['source'])).startswith(marker(name)))
def written_outcomes()->dict:
    "What the page says of each pair"
    head,_,*rows = [[c.strip() for c in l.strip('|').split('|')] for l in written('table').splitlines()[1:]]
    names = [*OURS,*FASTAI]
    return {(a,b): row[names.index(b)] for a,row in zip(OURS, rows, strict=True) for b in names if names.index(b) > names.index(a)}

if __name__ == '__main__':
    page = json.loads(PAGE.read_text())
    new = {'table': table({p: outcome(*p) for p in pairs()}), 'notes': notes()}
    for c in page['cells']:
        for k,v in new.items():
            if ''.join(c['source']).startswith(marker(k)): c['source'] = v.splitlines(keepends=True)
    PAGE.write_text(json.dumps(page, indent=1, ensure_ascii=False) + '\n')

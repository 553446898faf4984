"A fixed slice of the random search, and the search itself: that it calls faults what they are."
import pytest, search
from common import *
from search import *

N,SEED = 10_000,0

@pytest.mark.grid('i', range(N), every=67)
def test_a_random_configuration_trains_or_is_refused(i):
    _,_,kind,what,_ = try_case(SEED, i)
    assert kind != 'fault', f'{what}; python tests/search.py --smaller {i}'

# What it calls a fault

class Sound(TermCallback):
    "Nothing is wrong with it"
class Foreign(Sound):
    def before_batch(self): self.xb[7]
class ForeignInTorch(Sound):
    def after_pred(self): torch.zeros(2) + torch.zeros(3)
class Nameless(Sound): pass
class Hooked(Sound):
    def before_train(self): super().before_train(); self.model.register_forward_hook(lambda *_: None)
class Frozen(Sound):
    def before_train(self): super().before_train(); first(self.model.parameters()).requires_grad_(False)
class Swapped(Sound):
    def before_train(self): super().before_train(); self.learn.loss_func = partial(self.learn.loss_func)
class Added(Sound):
    def before_train(self): super().before_train(); self.learn.add_cb(Callback())
class Infinite(Sound):
    finite = False                                       # else the library says so itself
    def after_loss(self): self.add_term(self.pred.sum()/0, 1.)
class InfiniteTerm(Sound):
    finite = False
    def after_loss(self): self.add_term(self.pred.sum(), 1.); self.term = tensor(float('inf'))
class Explosive(Sound):
    def after_step(self):
        with torch.no_grad(): first(self.model.parameters()).mul_(1e8)
class Ends(Sound):
    def before_batch(self):
        if self.iter: raise CancelTrainException
class Slow(Sound):
    def before_batch(self):
        while True: pass
class NotOff(OwnPenalty):
    def after_step(self):
        with torch.no_grad(): first(self.model.parameters()).add_(1)
class OwnRefused(Sound):
    def before_batch(self): self.check_labels(None, 'watching classes')
FAULTS = {Foreign: 'IndexError', ForeignInTorch: 'RuntimeError', Hooked: 'leaves hooks', Frozen: 'leaves trained', Swapped: 'leaves loss', Added: 'leaves callbacks', Infinite: 'not finite', InfiniteTerm: 'not finite, infinite_term',
          Explosive: 'parameters beyond', Ends: '1 batches', Slow: 'takes too long'}

def case(cls, monkeypatch, args=None, **kwargs):
    monkeypatch.setitem(search.OURS, 'Own', (1, cls, {}))
    return dict(PLAIN, gan=False, ours=[['Own', args or {}]], **kwargs)

@pytest.mark.parametrize('cls', FAULTS)
def test_a_fault_is_seen(cls, monkeypatch):
    monkeypatch.setattr(search, 'PATIENCE', .2)
    kind,what,_ = outcome(case(cls, monkeypatch))
    assert kind == 'fault' and FAULTS[cls] in what
    assert outcome(dict(PLAIN, gan=False, ours=[]))[0] == 'trained'   # and nothing of it is left

def test_what_is_no_fault(monkeypatch):
    assert outcome(case(Sound, monkeypatch))[0] == 'trained'
    kind,what,_ = outcome(case(OwnRefused, monkeypatch))
    assert kind == 'refused' and 'OwnRefused' in what
    monkeypatch.setattr(InfiniteTerm, 'finite', True)
    kind,what,_ = outcome(case(InfiniteTerm, monkeypatch))
    assert kind == 'refused' and 'was not finite' in what
    bad = case(Sound, monkeypatch, features='nan')
    assert outcome(bad)[0] == 'baseline' and outcome(dict(bad, ours=[['Own', {'no_such_argument': 1}]]))[0] == 'baseline'
    assert outcome(case(Sound, monkeypatch, args={'no_such_argument': 1}))[0] == 'fault'

def test_an_error_of_the_library_that_names_nothing_is_a_fault(monkeypatch):
    def error(self, msg, kind=ValueError): return kind(msg)
    monkeypatch.setattr(LayerCallback, 'error', error)
    assert 'names nothing' in outcome(case(OwnRefused, monkeypatch))[1]

def test_a_callback_that_is_off_and_acts_is_a_fault(monkeypatch):
    assert 'off, and training is another' in outcome(case(NotOff, monkeypatch, args={'weight': 0.}))[1]
    assert outcome(case(OwnPenalty, monkeypatch, args={'weight': 0.}))[0] == 'trained'

def test_a_case_is_simplified(monkeypatch):
    monkeypatch.setitem(search.OURS, 'Own', (1, Hooked, {}))
    was = dict(draw(0, 3), gan=False, ours=[['WeightL1', {'weight': 0.}],['Own', {}]])
    key = outcome(was)[1]
    assert 'leaves hooks' in key
    small = smaller(was, key)
    assert [n for n,_ in small['ours']] == ['Own'] or outcome(small)[1] == key
    assert len(what_differs(small)) < len(what_differs(was))

# What it draws

def test_a_case_depends_on_seed_and_number_alone():
    cases = [draw(0, i) for i in range(50)]
    random.seed(9); np.random.seed(9); torch.manual_seed(9)
    assert cases == [draw(0, i) for i in range(50)] == json.loads(json.dumps(cases, allow_nan=False)) != [draw(1, i) for i in range(50)]
    assert [try_case(0, i) for i in (5, 6, 7)] == [try_case(0, i) for i in (5, 6, 7)]

def test_everything_is_drawn():
    "Networks, heads, inputs, targets, losses, loaders, dtypes, callbacks and each of their arguments"
    cases = [draw(0, i) for i in range(4000)]
    seen = lambda k: {c[k] for c in cases}
    assert seen('net') == {*NETS} and seen('head') == {*HEADS} and seen('features') == {*FEATURES} and seen('target') == {*TARGETS} and seen('loader') == {*LOADERS}
    assert seen('dtype') == {*DTYPES} and seen('pattern') == {*PATTERNS} and seen('bs') == {1,2,3,4,5,8} and {c['loss'] for c in cases} == {l for *_,ls in TARGETS.values() for l in ls}
    assert {t for c in cases for t in c['theirs']} == {*THEIRS} and {m for c in cases for m in c['metrics']} == {*METRICS} and seen('output') == {'plain','tuple','dict','named'}
    drawn = {(n,a) for c in cases for n,args in c['ours'] for a in args}
    assert drawn == {(n,a) for n,(_,_,args) in OURS.items() for a in args} and {n for c in cases for n,_ in c['ours']} == {*OURS}

def test_every_callback_is_searched():
    methods = {n for n,o in vars(latentreg_fastai.all).items() if isinstance(o, type) and issubclass(o, Callback) and o.__module__.startswith('latentreg_fastai.callback.')}
    bases = {'LayerCallback','TermCallback','WeightedTerm','LatentCallback','ClasswiseCallback','MixingCallback','LayerMixing','MoreRows','LoadedRows','BroughtRows','InnerRows','TrainingSaver'}
    settings = {'WeightDecay','DropoutRate'}                 # they set a number of the optimizer's or the model's: test_settings.py
    assert methods - bases - settings == {*OURS} - {'OwnPenalty','OwnMixing'}

def test_the_record_counts_every_case():
    found = [try_case(0, i) for i in range(12)]
    rec = record(found, 0, 1.)
    assert rec['n'] == 12 == sum(rec[c] for c in CLASSES_OF) and sum(rec['refusals'].values()) == rec['refused'] and sum(rec['baselines'].values()) == rec['baseline']
    for n,c in rec['by_callback'].items(): assert sum(c.values()) == sum(n in names for _,names,*_ in found)

# What is on record

def test_the_record_is_of_the_whole_search_and_contributors_read_what_it_holds():
    root = Path(__file__).parent.parent
    rec = json.loads((root/'nbs/results/search.jsonl').read_text(encoding='utf8').splitlines()[-1])
    assert rec['n'] == N and rec['seed'] == SEED and rec['fault'] == 0 and not rec['faults'] and sum(rec[c] for c in CLASSES_OF) == N
    text = ' '.join((root/'CONTRIBUTING.md').read_text(encoding='utf8').split())
    said = (f"`nbs/results/search.jsonl` holds what came of {N:,} of them: {rec['trained']:,} train with finite numbers, {rec['refused']:,} are refused by an "
            f"error that says why, {rec['baseline']:,} fail")
    assert said in text
    assert {*rec['by_callback']} == {*OURS} and len({i for i in range(0, N, 67)}) == 150

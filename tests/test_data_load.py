"`TensorDL` and `tensor_dls` against loaders of fastai, and fastai's tools on them; labels without reading items."
import pytest
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from fastai.tabular.core import Categorify, TabularPandas
from fastai.text.data import LMDataLoader
from common import *

def batches(dl): return [tuple(b) for b in dl]

def seeded(cls, ds, **kwargs):
    random.seed(3)                       # a loader draws the seed of its generator when it is made
    return cls(ds, num_workers=0, **kwargs)

# TensorDL

@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize('drop_last', [True, False])
@pytest.mark.parametrize('n', [None, 11])
def test_same_batches_as_fastai(shuffle, drop_last, n):
    x,y = images()
    kwargs = dict(bs=6, shuffle=shuffle, drop_last=drop_last, n=n, device=torch.device('cpu'))
    ours,theirs = seeded(TensorDL, (x,y), **kwargs),seeded(TfmdDL, list(zip(x, y)), **kwargs)
    for epoch in range(3):
        a,b = batches(ours),batches(theirs)
        assert len(a) == len(b) == len(ours) and all(map(equal, a, b))

def test_same_one_batch_and_transforms_as_fastai():
    x,y = images(c=3)
    def one_batch(cls, ds):
        tfms = [IntToFloatTensor(), Normalize.from_stats([.1,.2,.3], [.4,.5,.6], cuda=False)]
        return seeded(cls, ds, bs=6, shuffle=True, after_batch=tfms).one_batch()
    a,b = one_batch(TensorDL, (x.byte(),y)),one_batch(TfmdDL, list(zip(x.byte(), y)))
    assert equal(a, b) and a[0].dtype == torch.float32

@pytest.mark.parametrize('bs', [1, 6, 10, 20, 32])
@pytest.mark.parametrize('drop_last', [True, False])
def test_len_and_sizes(bs, drop_last):
    dl = TensorDL(images(), bs=bs, drop_last=drop_last)
    sizes = [len(x) for x,_ in dl]
    assert len(dl) == len(sizes) and sizes == [bs]*(20//bs) + [20%bs]*(not drop_last and 20%bs > 0)

def test_shuffle_is_reproducible_and_sees_every_sample_once():
    a,b = (seeded(TensorDL, images(), bs=6, shuffle=True) for _ in range(2))
    epochs = [batches(a) for _ in range(3)]
    assert all(equal(s, t) for e in epochs for s,t in zip(e, batches(b)))
    pixels = [torch.cat([x[:,0,0,0] for x,_ in e]) for e in epochs]
    assert not torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[1], pixels[2])
    for p in pixels: assert torch.equal(p.sort()[0], images()[0][:,0,0,0].sort()[0])

def test_inputs_and_targets_stay_together():
    x,y = images()
    for xb,yb in TensorDL((x,y), bs=6, shuffle=True):
        rows = [(x == o).flatten(1).all(1).nonzero().item() for o in xb]
        assert torch.equal(yb, y[rows])

def test_a_loader_leaves_the_global_random_state_alone():
    dl = TensorDL(images(), bs=6, shuffle=True)
    before = random.getstate(),torch.get_rng_state()
    batches(dl)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])

@pytest.mark.parametrize('bs', [6, 20, 64])
@pytest.mark.parametrize('shuffle', [True, False])
def test_a_batch_does_not_alias_the_data_set(bs, shuffle):
    ds = images()
    for x,y in TensorDL(ds, bs=bs, shuffle=shuffle, device=torch.device('cpu')): x.zero_(); y.fill_(9)
    assert equal(ds, images())

def test_tensors_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match='20, 3'): TensorItems(torch.zeros(20, 2), torch.zeros(3))

# tensor_dls

def test_training_drops_its_last_batch_and_validation_is_whole():
    dls = image_dls(bs=8)
    assert [len(x) for x,_ in dls.train] == [8,8] and [len(x) for x,_ in dls.valid] == [16,4]
    assert torch.equal(torch.cat([x for x,_ in dls.valid]), images(seed=1)[0])
    assert [len(x) for x,_ in image_dls(bs=64).train] == [20]         # one partial batch is better than none

def test_vocab():
    assert image_dls().c == 4 and list(image_dls().vocab) == NAMES
    assert image_dls(vocab=None).c == 4
    x = torch.randn(20, 3)
    assert tensor_dls((x,x), (x,x), device='cpu').c is None           # regression has no classes
    assert tensor_dls((x,x,torch.arange(20)), (x,x,torch.arange(20)), device='cpu').n_inp == 2

# fastai's tools on these loaders

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    torch.manual_seed(0)
    learn = Learner(digits_dls(n_train=200, n_valid=100, device='cpu'), small_cnn(), loss_func=CrossEntropyLossFlat(),
                    path=tmp_path_factory.mktemp('learner'))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 1e-2)
    return learn

def predict(learn, item): return quietly(learn, lambda: learn.predict(item))
def get_preds(learn, **kwargs): return quietly(learn, lambda: learn.get_preds(**kwargs))

def test_decode_gives_class_names_and_pixels():
    dl = image_dls().valid
    b = dl.one_batch()
    for (x,name),xb,yb in zip(dl.decode_batch(b, max_n=16), *b):
        assert torch.equal(x, xb) and name == NAMES[yb]

def test_decode_undoes_normalisation():
    dls = digits_dls(device='cpu')
    x,_ = dls.valid.decode(dls.valid.one_batch())
    assert same_pixels(x, dls.valid_ds.tensors[0])

def test_show_batch_titles_are_class_names():
    dls = image_dls()
    _,axes = plt.subplots(1, 6)
    dls.valid.show_batch(ctxs=list(axes), max_n=6)
    assert [ax.get_title() for ax in axes] == [NAMES[y] for y in dls.valid_ds.tensors[1][:6]]
    plt.close('all')

@pytest.mark.parametrize('cls', [TfmdDL, TensorDL])
def test_show_batch_of_one_sample(cls, monkeypatch):
    "fastai's `unique=True` draws indices without end: a loader may take only those it needs"
    def zeros():
        for _ in range(1000): yield 0
        raise RuntimeError('show_batch(unique=True) would never end')
    monkeypatch.setattr('fastai.data.core.Inf', SimpleNamespace(zeros=zeros()))
    x,y = images()
    dl = TensorDL((x,y), bs=6, vocab=NAMES) if cls is TensorDL else TfmdDL(list(zip(x, y)), bs=6, num_workers=0)
    its = dl.show_batch(unique=True, show=False)[-1]
    assert len(its) == 6 and all(torch.equal(o[0], x[0]) for o in its)

def test_show_results(learn):
    quietly(learn, lambda: learn.show_results(max_n=4))
    assert len(plt.gcf().axes) >= 4 and all('\n' in ax.get_title() for ax in plt.gcf().axes[:4])   # target over prediction
    plt.close('all')

def test_predict_one_image(learn):
    preds,targs = get_preds(learn)
    assert (preds.argmax(1) == targs).float().mean() > .5
    for i in (0, 37, 99):
        name,idx,probs = predict(learn, learn.dls.valid_ds[i][0])
        torch.testing.assert_close(probs, preds[i])
        assert idx == preds[i].argmax() and name == learn.dls.vocab[idx]

def test_test_dl(learn):
    dls,n = learn.dls,30
    items = [dls.valid_ds[i] for i in range(n)]
    xb,yb = dls.valid.one_batch()
    plain,labelled = dls.test_dl([x for x,_ in items]),dls.test_dl(items, with_labels=True)
    assert type(plain) is TensorDL and len(plain.dataset) == n
    assert equal(plain.one_batch(), (xb[:n],)) and equal(labelled.one_batch(), (xb[:n],yb[:n]))   # in order, transformed
    want,targs = get_preds(learn)
    torch.testing.assert_close(get_preds(learn, dl=plain)[0], want[:n])
    assert torch.equal(get_preds(learn, dl=labelled)[1], targs[:n])
    assert [name for _,name in labelled.decode_batch((xb,yb), max_n=n)] == [dls.vocab[y] for y in yb[:n]]

def test_interpretation_knows_every_class(learn):
    interp = quietly(learn, lambda: ClassificationInterpretation.from_learner(learn))
    preds,targs = get_preds(learn)
    want = np.zeros((10,10), dtype=int)
    for t,p in zip(targs, preds.argmax(1)): want[t,p] += 1
    assert np.array_equal(quietly(learn, interp.confusion_matrix), want)

def test_new_empty_keeps_the_classes_and_not_the_data(learn):
    empty = learn.dls.new_empty()
    assert len(empty.train_ds) == len(empty.valid_ds) == 0
    assert list(empty.vocab) == list(learn.dls.vocab) and empty.c == 10
    for ds in (empty.train_ds, empty.valid_ds):
        for t in ds.tensors: assert t.untyped_storage().nbytes() == 0     # a view would carry all of the data into every export

def test_export_and_load(learn, tmp_path):
    image,want = learn.dls.valid_ds[5][0],get_preds(learn)[0]
    learn.export(tmp_path/'learner.pkl')
    loaded = load_learner(tmp_path/'learner.pkl')
    assert len(loaded.dls.train_ds) == 0 and len(learn.dls.train_ds) == 200
    (name,idx,probs),(name2,idx2,probs2) = predict(learn, image),predict(loaded, image)
    assert name == name2 and idx == idx2 and torch.equal(probs, probs2)
    dl = loaded.dls.test_dl([x for x,_ in learn.dls.valid_ds])
    assert torch.equal(get_preds(loaded, dl=dl)[0], want)

def test_an_export_does_not_grow_with_the_data(tmp_path):
    def size(n):
        Learner(digits_dls(n, device='cpu'), nn.Linear(1, 1), loss_func=CrossEntropyLossFlat(), path=tmp_path).export('learner.pkl')
        return (tmp_path/'learner.pkl').stat().st_size
    assert abs(size(1300) - size(100)) < 1000

# Labels

def test_a_subset_of_a_data_set_with_a_series():
    "Targets that pandas holds are taken by place, not by the names of their rows"
    ds = Items()
    ds.targets = pd.Series(LABELS, index=range(15, -1, -1))
    assert labels_of(ds).tolist() == LABELS and labels_of(Subset(ds, [2,6,0])).tolist() == [2,3,0]

number = lambda o: float(o)

def test_labels_are_found_without_reading_items(tmp_path):
    dls = image_block(item_tfms=Resize(8)).dataloaders(image_folder(tmp_path), bs=4, num_workers=0, device='cpu')
    seen = []
    dsets = Datasets(list(range(12)), [[lambda o: seen.append(o) or tensor(float(o))], [lambda o: CLASSES[o%3], Categorize()]])
    items,opened,n = Items(),CountedImage.opened,len(seen)
    assert opened and labels_of(dls.train).tolist() == [CLASSES.index(f.parent.name) for f in dls.train_ds.items]
    assert labels_of(dsets).tolist() == [0,1,2]*4 and labels_of(items).tolist() == LABELS
    for dl in (dls.train, loader_of(dsets), loader_of(items)): MicroClusterDL(dl, 2), PairedDL(dl, matched=True)
    assert CountedImage.opened == opened and len(seen) == n and not items.reads

def test_a_list_of_transforms_is_not_read():
    "`TfmdLists` looks like a list, but each of its items is made when it is asked for"
    seen = []
    tls = TfmdLists(list(range(6)), [lambda o: seen.append(o) or (float(o), o%2)])
    n = len(seen)
    with pytest.raises(ValueError, match='labels='): labels_of(tls)
    assert len(seen) == n and labels_of(tls, [0]*6).tolist() == [0]*6

def test_labels_of_two_inputs():
    dsets = Datasets(list(range(12)), [[number], [number], [lambda o: o%4]], n_inp=2)
    assert labels_of(dsets).tolist() == [0,1,2,3]*3
    assert labels_of(TensorItems(torch.rand(4), torch.rand(4), tensor([2,0,1,0]))).tolist() == [2,0,1,0]

class Unknown:
    def __len__(self): return 6
    def __getitem__(self, i): return tensor(1.), 0

class Method(Unknown):
    def labels(self): return [0]*6

class Dict(Unknown):
    labels = {i: i%2 for i in range(6)}

def ds_of(*target): return Datasets(list(range(6)), [[number], list(target)])
def tab(**kwargs): return TabularPandas(frame(), [Categorify], ['shape'], ['row'], splits=[list(range(20)), list(range(20, 30))], **kwargs).train
def lm_loader(): return LMDataLoader(Datasets([tensor([1,2,3,4])]*6, [[noop]]), bs=2, seq_len=2, lens=[4]*6)

UNLABELLED = {
    'regression': lambda: ds_of(number, RegressionSetup()), 'floats': lambda: TensorDataset(torch.rand(6), torch.rand(6)),
    'column of floats': lambda: TensorDataset(torch.rand(6), torch.rand(6,1)), 'points': lambda: ds_of(lambda o: TensorPoint(torch.rand(2,2))),
    'list of floats': lambda: Items([.5]*6), 'one-hot': lambda: ds_of(lambda o: ['ab','b','a'][o%3], list, MultiCategorize(), OneHotEncode()),
    'many labels': lambda: ds_of(lambda o: ['ab','b','a'][o%3], list, MultiCategorize()), 'one-hot tensor': lambda: TensorDataset(torch.rand(6), torch.eye(6).long()),
    'masks': lambda: ds_of(lambda o: TensorMask(torch.zeros(3,3).long())), 'only inputs': lambda: Datasets(list(range(6)), [[number]]),
    'only inputs, tensors': lambda: TensorItems(torch.rand(6)), 'language model': lm_loader, 'unknown': Unknown, 'list of inputs': lambda: list(torch.rand(6)),
    'Subset of unknown': lambda: Subset(Unknown(), range(3)),
    'ConcatDataset of unknown': lambda: ConcatDataset([Items(), Unknown()]), 'strings': lambda: Items(['a']*6), 'none': lambda: Items([None]*6),
    'tabular regression': lambda: tab(y_names='grade', y_block=RegressionBlock()), 'tabular without targets': lambda: tab(),
    'tabular many labels': lambda: tab(y_names=['a','b'], y_block=MultiCategoryBlock(encoded=True, vocab=['a','b'])),
    'tabular two targets': lambda: tab(y_names=['grade','row'], y_block=RegressionBlock()),
    'a method': lambda: Method(), 'a dict': lambda: Dict()}

@pytest.mark.parametrize('kind', UNLABELLED)
def test_no_labels(kind):
    ds = UNLABELLED[kind]()
    with pytest.raises(ValueError, match='labels='): labels_of(ds)
    dl = ds if isinstance(ds, DataLoader) else TfmdDL(ds, bs=2, num_workers=0, do_setup=False)
    with pytest.raises(ValueError, match='labels='): MicroClusterDL(dl, 2)
    with pytest.raises(ValueError, match='labels='): PairedDL(dl, matched=True)
    n = len(dl.dataset)
    assert labels_of(ds, [1]*n).tolist() == [1]*n                  # told, they are known
    assert PairedDL(dl).labels is None                             # and pairs need none

def test_labels_of_the_wrong_length():
    for labels in (LABELS[:-1], LABELS+[0], []):
        with pytest.raises(ValueError, match=r'labels='): MicroClusterDL(loader_of(), 2, labels)
    ds = Unknown()
    ds.targets = [0]*7
    with pytest.raises(ValueError, match='7 labels for 6 items.*labels='): labels_of(ds)

@pytest.mark.parametrize('kind', [list, tuple, L, np.array, tensor, pd.Series, TensorCategory, lambda o: np.array(o, dtype=np.int8), lambda o: np.array(o)[:,None],
                                  lambda o: pd.Series(o, index=range(50, 66)), lambda o: [np.int64(i) for i in o], lambda o: [tensor(i) for i in o]])
def test_labels_given(kind):
    mine = [i//4 for i in range(16)]
    assert labels_of(Items(), kind(mine)).tolist() == mine
    for e in epochs(MicroClusterDL(loader_of(), 3, kind(mine)), 2):
        for x,y in e: assert all(len({mine[i] for i in x[j:j+3]}) == 1 and len(set(x[j:j+3])) == 3 for j in range(0, 12, 3))

@pytest.mark.parametrize('labels', [[.5]*16, ['a']*16, [[0,1]]*16, torch.linspace(0, 1, 16), 3, 'abc', [None]*16, [[0]]*15+[[0,1]]])
def test_bad_labels_given(labels):
    with pytest.raises(ValueError, match='labels'): labels_of(Items(), labels)

def test_labels_of_any_integers():
    y = [-7, 10**9, -7, 10**9, 0, 0]
    check_epoch(numbers(MicroClusterDL(loader_of(Items(y), bs=2), 2)), 2, y)
    assert labels_of(Items([True, False, True])).tolist() == [1,0,1]

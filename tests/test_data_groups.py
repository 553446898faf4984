"The loaders of groups: micro-clusters and pairs, over every kind of fastai loader; few labels and many."
import pytest
import inspect, pickle
from scipy.stats import chi2
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from fastai.callback.data import PartialDL, WeightedDL
from fastai.tabular.core import Categorify, FillMissing, TabDataLoader, TabularPandas
from fastai.text.core import BaseTokenizer, Tokenizer
from fastai.text.data import Numericalize, SortedDL, TextBlock, TextDataLoaders, pad_input
from common import *
from latentreg_fastai.data.groups import *
from latentreg_fastai.targets import n_classes_of

def mains(dl, k): return [i for x,_ in numbers(dl) for i in x[::k]]
def clusters(dl, k): return [x[i:i+k] for x,_ in numbers(dl) for i in range(0, len(x), k)]

# Micro-clusters

@pytest.mark.parametrize('cls', [TfmdDL, TensorDL, DataLoader])
@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('bs', [1, 5, 16, 40])
@pytest.mark.parametrize('k', [1, 2, 4])
def test_epochs(cls, k, bs, drop_last):
    ds = numbered() if cls is TensorDL else Items()
    dl = MicroClusterDL(loader_of(ds, bs, cls=cls, drop_last=drop_last), k)
    for e in epochs(dl):
        check_epoch(e, k, whole=not drop_last)
        assert len(e) == len(dl) and [len(x) for x,_ in e] == [bs*k]*(16//bs) + [16%bs*k]*(16%bs > 0 and not drop_last)

def test_not_shuffled():
    for e in range(2): assert mains(MicroClusterDL(loader_of(shuffle=False, bs=5), 3), 3) == list(range(16))

@pytest.mark.parametrize('k', [2, 4])
def test_partners_are_uniform(k):
    "Every ordered choice of partners is as likely as any other, for each main sample"
    y,draws = [0]*5 + [1]*6,400
    dl = MicroClusterDL(loader_of(numbered(11, y), bs=11, cls=TensorDL), k)
    seen = collections.Counter(tuple(c) for _ in range(draws) for c in clusters(dl, k))
    stat = dof = 0
    for main in range(11):
        choices = list(itertools.permutations([i for i in range(11) if y[i] == y[main] and i != main], k-1))
        want = draws/len(choices)
        stat += sum((seen[(main,*c)] - want)**2/want for c in choices)
        dof += len(choices)-1
    assert sum(seen.values()) == 11*draws and .001 < chi2.sf(stat, dof) < .999

def test_partners_of_a_small_class_are_uniform():
    "A class of three in clusters of four: each partner is one of the other two, with replacement"
    dl = MicroClusterDL(loader_of(numbered(3, [0]*3), bs=3, cls=TensorDL), 4)
    seen = collections.Counter(tuple(c) for _ in range(800) for c in clusters(dl, 4))
    stat = sum((seen[(m,*c)]-100)**2/100 for m in range(3) for c in itertools.product([i for i in range(3) if i != m], repeat=3))
    assert sum(seen.values()) == 2400 and .001 < chi2.sf(stat, 21) < .999

def test_partners_stay_within_the_samples_of_the_loader():
    "A loader of the first `n` samples has no others"
    for e in epochs(MicroClusterDL(loader_of(bs=4, n=8), 2), 5):
        assert sorted(i for x,_ in e for i in x[::2]) == list(range(8)) and {i for x,_ in e for i in x} <= set(range(8))

def test_reproducible():
    a,b,c = (MicroClusterDL(loader_of(seed=s), 3) for s in (3, 3, 4))
    first = epochs(a)
    assert first == epochs(b) and first != epochs(c)
    a.rng.seed(5); b.rng.seed(5)
    assert epochs(a) == epochs(b)
    state = a.rng.getstate()
    first = epochs(a)
    a.rng.setstate(state)
    assert epochs(a) == first

@pytest.mark.parametrize('shuffle', [True, False])
def test_other_partners_each_epoch(shuffle):
    dl = MicroClusterDL(loader_of(shuffle=shuffle), 3)
    a,b,c = (sorted(clusters(dl, 3)) for _ in range(3))
    assert a != b and b != c and a != c

SUBCLASSES = {'TfmdDL': (TfmdDL, {}), 'not shuffled': (TfmdDL, dict(shuffle=False)), 'n': (TfmdDL, dict(n=11)), 'TensorDL': (TensorDL, {}),
              'DataLoader': (DataLoader, {}), 'WeightedDL': (WeightedDL, dict(wgts=[5.]*8+[1.]*8)), 'PartialDL': (PartialDL, dict(partial_n=10)),
              'SortedDL': (SortedDL, dict(sort_func=lambda o: o[0].item() % 5)), 'shuffle_fn': (TfmdDL, dict(shuffle_fn=lambda idxs: idxs[::-1])),
              'get_idxs': (TfmdDL, dict(get_idxs=lambda: [3,1,2,9,7]))}

@pytest.mark.parametrize('wrap', [lambda dl: MicroClusterDL(dl, 2), PairedDL, lambda dl: PairedDL(dl, matched=True)], ids=['clusters', 'pairs', 'matched'])
@pytest.mark.parametrize('kind', SUBCLASSES)
def test_main_order_is_the_users(kind, wrap):
    cls,kwargs = SUBCLASSES[kind]
    ds = numbered() if cls is TensorDL else Items()
    mine,its = (loader_of(ds, cls=cls, **kwargs) for _ in range(2))
    np.random.seed(0)
    want = []
    for _ in range(3): want.append((numbers(its), its.rng.getstate()))
    np.random.seed(0)
    dl = wrap(mine)
    for e,state in want:
        got = [x for x,_ in numbers(dl)]
        assert [x[::2] if isinstance(dl, MicroClusterDL) else x[:len(x)//2] for x in got] == [x for x,_ in e]
        assert [len(x) for x in got] == [2*len(x) for x,_ in e] and mine.rng.getstate() == state and len(dl) == len(its)

def test_a_loader_that_was_shown():
    "fastai's `show_batch(unique=True)` leaves `get_idxs` on the loader it was called on"
    dls = image_datasets().dataloaders(bs=4, num_workers=0, device='cpu')
    dls.train.show_batch(unique=True)
    plt.close('all')
    assert [len(x) for x,_ in MicroClusterDL(dls.train, 2)] == [8,8,8,8]

@pytest.mark.parametrize('cls', [TfmdDL, TensorDL])
def test_random_states_are_left_alone(cls):
    dl = loader_of(numbered() if cls is TensorDL else None, cls=cls)
    before,mine,torch_state = random_state(),dl.rng.getstate(),torch.get_rng_state()
    numbers(dl)
    after = random_state()                                             # fastai draws a seed for workers, even without any
    for wrap in (lambda: MicroClusterDL(dl, 3), lambda: PairedDL(dl), lambda: PairedDL(dl, True)):
        torch.set_rng_state(torch_state); dl.rng.setstate(mine)
        loader = wrap()
        assert random_state() == before and dl.rng.getstate() == mine
        numbers(loader)
        assert random_state() == after

@pytest.mark.parametrize('wrap', [lambda dl: MicroClusterDL(dl, 3), PairedDL, lambda dl: PairedDL(dl, active=lambda i: i > 0)], ids=['clusters','pairs','active'])
@pytest.mark.parametrize('drop_last', [True, False])
def test_workers_give_the_same_batches(wrap, drop_last):
    a,b = (wrap(loader_of(bs=5, drop_last=drop_last, num_workers=w)) for w in (0, 2))
    torch.manual_seed(0); e = epochs(a, 2)
    torch.manual_seed(0); assert epochs(b, 2) == e
    assert numbers([a.one_batch()]) == numbers([b.one_batch()])

def test_skipped_items_do_not_shift_the_clusters():
    "An item that raises fastai's `SkipItemException` may take its cluster with it or be refused, but no cluster may hold two classes"
    class Skip(ItemTransform):
        def encodes(self, o):
            if o[0] == 4: raise SkipItemException
            return o
    dl = MicroClusterDL(loader_of(after_item=Skip(), shuffle=False), 2)
    try: got = numbers(dl)
    except (RuntimeError,TypeError) as e: assert 'SkipItemException' in str(e)
    else: assert got and all(len(x) % 2 == 0 and y[::2] == y[1::2] for x,y in got)

def test_a_worker_runs_the_users_wif(tmp_path):
    class DL(TfmdDL):
        def wif(self): (tmp_path/'ran').touch()
    numbers(MicroClusterDL(loader_of(cls=DL, num_workers=1), 2))
    assert (tmp_path/'ran').exists()

def test_tensors_are_moved_to_the_device_once():
    class Moved:
        "A tensor that counts its moves"
        def __init__(self, t): self.t,self.n = t,0
        def __len__(self): return len(self.t)
        def to(self, device): self.n += 1; return self.t
    one,two = loader_of(numbered(), cls=TensorDL, device='cpu'),loader_of(numbered(), cls=TensorDL, device='cpu')
    group = MicroClusterDL(two, 2)
    for dl in (one, group):
        ds = dl.dataset
        ds.tensors = [Moved(t) for t in ds.tensors]
        epochs(dl, 3)
        assert [t.n for t in ds.tensors] == [1,1]

def test_a_pickle_of_a_used_loader_of_tensors_holds_the_data_once():
    dl = loader_of((torch.zeros(10_000), torch.zeros(10_000).long()), cls=TensorDL, bs=1000, device='cpu')
    group,fresh = MicroClusterDL(dl, 2),len(pickle.dumps(dl))
    numbers(dl); numbers(group)
    size = lambda o: len(pickle.dumps(o))
    dl._on[torch.device('cpu')] = tuple(t.clone() for t in dl.dataset.tensors)      # as on another device
    assert size(dl) < fresh+1000
    group.labels = None
    assert size(group) < size(dl)+5000

# Kinds of loaders

def image_datasets(n=20):
    "Two parts of random images held in memory"
    rng = np.random.default_rng(0)
    items = [(rng.integers(0, 256, (8,8,3), dtype=np.uint8), CLASSES[i%3]) for i in range(n)]
    return Datasets(items, [[ItemGetter(0), PILImage.create, ToTensor(), IntToFloatTensor()], [ItemGetter(1), Categorize()]], splits=[list(range(n-4)), list(range(n-4, n))])

def same_class(b, k):
    "The rows of a batch are clusters of one class"
    y = b[-1].view(-1, k)
    assert len(b[0]) == len(b[-1]) and (y == y[:,:1]).all()
    return len(y)

def check_dls(dls, k=2, n=None):
    "What holds for all `DataLoaders` with clusters"
    train = dls.train
    assert isinstance(train, MicroClusterDL) and sum(same_class(b, k) for b in train) == (n or len(train)*train.bs)
    its = train.show_batch(max_n=4, show=False)[-1]
    assert its is None or len(its) == 4                                # a table shows itself
    train.show_batch(max_n=4)
    train.show_batch(max_n=2, unique=True)
    plt.close('all')
    assert [same_class(b, k) for b in train][0] == min(train.bs, len(train.dataset))
    b = train.one_batch()
    if its is not None: assert len(train.decode_batch(b, max_n=3)) == 3
    train.decode(b)
    copy_ = pickle.loads(pickle.dumps(train))
    def seeded(dl):
        set_seed(1); dl.rng.seed(1)
        return [o[-1].tolist() for o in dl]
    assert seeded(train) == seeded(copy_)
    single = train.new(shuffle=False, drop_last=False)
    assert not isinstance(single, MicroClusterDL) and sum(len(o[-1]) for o in single) == len(train.dataset)
    if not isinstance(single, SortedDL): assert torch.cat([o[-1].view(-1) for o in single]).tolist() == labels_of(train).tolist()
    assert train.n_inp == single.n_inp and type(train.dataset) is type(single.dataset)

def test_data_block(tmp_path):
    block = image_block(item_tfms=Resize(8), batch_tfms=[*aug_transforms(size=8, min_scale=.9), Normalize.from_stats(*imagenet_stats, cuda=False)])
    dls = block.microcluster_dataloaders(image_folder(tmp_path), 3, bs=4, num_workers=0, device='cpu')
    assert [o.shape for o in dls.one_batch()] == [(12,3,8,8), (12,)] and len(dls.valid.one_batch()[0]) == 4
    x,y = dls.one_batch()
    assert isinstance(x, TensorImage) and isinstance(y, TensorCategory) and dls.vocab == CLASSES and dls.c == 3 and dls.bs == 4
    assert labels_of(dls.train).tolist() == [CLASSES.index(f.parent.name) for f in dls.train_ds.items]
    check_dls(dls, 3)

def test_members_are_augmented_on_their_own(tmp_path):
    "The only image of a class comes twice, and each time looks otherwise"
    dls = image_block(item_tfms=[Resize(10), RandomCrop(8)]).microcluster_dataloaders(image_folder(tmp_path, 1), bs=3, num_workers=0, device='cpu')
    pairs = torch.cat([x.as_subclass(Tensor) for _ in range(4) for x,_ in dls.train]).view(12, 2, -1)
    assert sum(torch.equal(a, b) for a,b in pairs) < 6
    for tfms in ([Rotate(p=1.)], [Brightness(p=1.)], [IntToFloatTensor(), PadCrop(3)]):
        dls = image_block(item_tfms=Resize(8), batch_tfms=tfms).microcluster_dataloaders(tmp_path, bs=3, num_workers=0, device='cpu')
        pairs = torch.cat([x.as_subclass(Tensor) for _ in range(4) for x,_ in dls.train]).view(12, 2, -1)
        assert sum(torch.equal(a, b) for a,b in pairs) < 4

@pytest.mark.parametrize('num_workers', [0, 2])
def test_image_data_loaders_from_folder(tmp_path, num_workers):
    dls = ImageDataLoaders.from_folder(image_folder(tmp_path), bs=4, item_tfms=Resize(8), num_workers=num_workers, device='cpu')
    dls.train = MicroClusterDL(dls.train, 2)
    check_dls(dls)
    assert labels_of(dls.train).tolist() == [CLASSES.index(f.parent.name) for f in dls.train_ds.items]

def test_datasets():
    dls = image_datasets().microcluster_dataloaders(bs=4, num_workers=0, device='cpu')
    check_dls(dls)
    assert labels_of(dls.train).tolist() == [i%3 for i in range(16)] and len(dls.valid.one_batch()[0]) == 4

def test_microcluster_dataloaders_pass_on_what_they_are_given(tmp_path):
    kw = dict(bs=5, val_bs=3, drop_last=False, num_workers=0, device='cpu', path=tmp_path)
    labels = [i//4 for i in range(16)]
    for dls in (image_datasets().microcluster_dataloaders(4, labels, **kw), image_datasets().microcluster_dataloaders(k=4, labels=tensor(labels), **kw)):
        assert dls.train.labels.tolist() == labels and [len(x) for x,_ in dls.train] == [20,20,20,4] and len(dls.valid.one_batch()[0]) == 3
        assert dls.path == tmp_path
    dls = image_block().microcluster_dataloaders(image_folder(tmp_path), k=2, labels=[i//6 for i in range(18)], **kw)
    assert dls.train.labels.tolist() == [i//6 for i in range(18)] and [len(x) for x,_ in dls.train] == [10,10,10,6]
    for f in (Datasets.microcluster_dataloaders, DataBlock.microcluster_dataloaders): assert {'k','labels','path'} <= {*inspect.signature(f).parameters}

@pytest.mark.parametrize('cls', [None, TabDataLoader])
def test_tabular(cls):
    to = TabularPandas(frame(), [Categorify], ['shape'], ['row'], y_names='kind', splits=[list(range(29, 5, -1)), list(range(6))])
    dls = to.dataloaders(bs=4, device='cpu', **({} if cls is None else dict(dl_type=cls)))
    dls.train = MicroClusterDL(dls.train, 2)
    assert labels_of(dls.train).tolist() == [i%3 for i in range(29, 5, -1)] and [labels_of(dls.valid).tolist()] == [[0,1,2]*2]
    for cats,conts,y in dls.train:
        assert len(y) == 8 and (conts[:,0].long() % 3 == y.view(-1)).all()
        assert (conts[::2] != conts[1::2]).all() and (y[::2] == y[1::2]).all()
    if cls: assert sorted(int(i) for _,c,_ in dls.train for i in c[::2,0]) == list(range(6, 30))
    check_dls(dls)

def text_datasets():
    rng = np.random.default_rng(0)
    items = [(' '.join(rng.choice(['red','green','blue'], n)), CLASSES[n%3]) for n in rng.integers(1, 30, 24)]
    tfms = [[ItemGetter(0), Tokenizer(BaseTokenizer(), rules=[]), Numericalize(vocab=['xxunk','xxpad','red','green','blue'])], [ItemGetter(1), Categorize()]]
    return Datasets(items, tfms, splits=[list(range(20)), list(range(20, 24))], dl_type=SortedDL)

def test_text():
    dsets = text_datasets()
    kw = dict(bs=4, before_batch=pad_input, num_workers=0, device='cpu', drop_last=False)
    for dls in (dsets.microcluster_dataloaders(3, **kw), dsets.dataloaders(**kw)):
        if not isinstance(dls.train, MicroClusterDL): dls.train = MicroClusterDL(dls.train, 3)
        check_dls(dls, 3, 20)
        for x,y in dls.train: assert x.ndim == 2 and (x != 1).any(0).all() and ((x != 1).sum(1) % 3 == tensor([CLASSES.index(dls.vocab[1][i]) for i in y])).all()
        np.random.seed(1); want = [x.shape[0] for x,_ in dls.train.new()]
        np.random.seed(1); assert [len(x)//3 for x,_ in dls.train] == want

def test_text_block():
    df = pd.DataFrame(dict(text=['red '*(i%7+1) for i in range(24)], label=[CLASSES[i%3] for i in range(24)]))
    block = DataBlock((TextBlock.from_df('text', tok=BaseTokenizer()), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'), splitter=IndexSplitter(range(20, 24)))
    dls = block.microcluster_dataloaders(df, 2, bs=4, num_workers=0, device='cpu')
    assert isinstance(dls.train.dl, SortedDL) and labels_of(dls.train).tolist() == [i%3 for i in range(20)]
    check_dls(dls)

def test_tensor_dl():
    dls = tensor_dls((TensorImage(torch.rand(18,3,8,8)), TensorCategory(torch.arange(18)%3)), (TensorImage(torch.rand(6,3,8,8)), TensorCategory(torch.arange(6)%3)),
                     vocab=CLASSES, bs=4, device='cpu', after_batch=[PadCrop(2), MirrorFlip()])
    dls.train = MicroClusterDL(dls.train, 2)
    check_dls(dls)
    x,y = dls.train.one_batch()
    assert isinstance(x, TensorImage) and isinstance(y, TensorCategory)
    one = loader_of((TensorImage(torch.rand(4,3,8,8)), torch.arange(4)), cls=TensorDL, after_batch=[PadCrop(2)])
    one.dataset.split_idx = 0
    pairs = torch.cat([x for _ in range(3) for x,_ in MicroClusterDL(one, 2)])
    assert sum(torch.equal(a, b) for a,b in zip(pairs[::2], pairs[1::2])) < 4

class Named(Items):
    "Labels under another name"
    def __init__(self): super().__init__(); self.labels = np.array(self.targets); self._y = self.targets; del self.targets
    def __len__(self): return 16
    def __getitem__(self, i): self.reads.append(i); return tensor(float(i)), int(self.labels[i])

X,Y = numbered()
TORCH = {'targets': Items, 'labels': Named, 'TensorDataset': lambda: TensorDataset(*numbered()), 'list': lambda: list(zip(*numbered())), 'L': lambda: L(zip(*numbered())),
         'TensorItems': lambda: TensorItems(*numbered()), 'Subset': lambda: Subset(ConcatDataset([Items([9]*5), Items()]), list(range(5, 21))),
         'Subset of a tensor': lambda: Subset(TensorDataset(*[t.flip(0) for t in numbered()]), torch.arange(15, -1, -1)),
         'nested Subset': lambda: Subset(Subset(TensorDataset(*[t.flip(0) for t in numbered()]), range(15, -1, -1)), list(range(16))),
         'ConcatDataset': lambda: ConcatDataset([Subset(Items(), range(4)), TensorDataset(*[t[4:] for t in numbered()])]),
         'two inputs': lambda: TensorDataset(X, X, Y), 'column': lambda: TensorDataset(X, Y[:,None]), 'int32': lambda: TensorDataset(X, Y.int())}

@pytest.mark.parametrize('kind', TORCH)
def test_torch_data_sets(kind):
    ds = TORCH[kind]()
    assert labels_of(ds).tolist() == LABELS and labels_of(loader_of(ds)).tolist() == LABELS and labels_of(ds).dtype == np.int64
    dl = MicroClusterDL(ds, k=2, bs=4, shuffle=True, num_workers=0)
    assert labels_of(dl).tolist() == LABELS and type(dl.dl) is TfmdDL and dl.bs == 4 and len(dl) == 4
    for b in dl: assert len(b[0]) == 8 and same_class((b[0], b[-1].view(-1)), 2) == 4
    if kind in ('targets','labels','TensorDataset'): check_epoch(numbers(dl), 2)

@pytest.mark.parametrize('kind', ['WeightedDL', 'PartialDL'])
def test_weighted_and_partial(kind):
    cls,kwargs = SUBCLASSES[kind]
    dl = MicroClusterDL(loader_of(cls=cls, **kwargs), 2)
    for e in epochs(dl):
        assert [len(x) for x,_ in e] == [8]*4 if kind == 'WeightedDL' else [8,8,4]
        for x,y in e: assert y == [LABELS[i] for i in x] and y[::2] == y[1::2]
    dsets = image_datasets()
    dls = dsets.weighted_dataloaders(np.arange(16.), bs=4, num_workers=0, device='cpu') if kind == 'WeightedDL' else dsets.partial_dataloaders(8, bs=4, num_workers=0, device='cpu')
    dls.train = MicroClusterDL(dls.train, 2)
    check_dls(dls, n=len(dls.train)*4)

# fastai's tools on these loaders

def learner(dls, path='.'):
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), loss_func=CrossEntropyLossFlat(), path=path, metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

@pytest.mark.parametrize('wrap', [lambda dl: MicroClusterDL(dl, 2), PairedDL], ids=['clusters','pairs'])
def test_in_a_learner(wrap, tmp_path):
    dls = image_datasets().dataloaders(bs=4, num_workers=0, device='cpu')
    dls.train = wrap(dls.train)
    seen,learn = [],learner(dls, tmp_path)
    learn.fit(1, cbs=Probe(run_valid=False, after_pred=lambda l: seen.append(len(l.yb[0]))))
    assert seen == [8]*4
    preds,targs = learn.get_preds(ds_idx=0)
    with torch.no_grad(): want = learn.model(torch.stack([o[0] for o in dls.train_ds])).softmax(1)
    assert targs.tolist() == [i%3 for i in range(16)]
    torch.testing.assert_close(preds.as_subclass(Tensor), want.as_subclass(Tensor))
    learn.export(tmp_path/'l.pkl')
    back = load_learner(tmp_path/'l.pkl')
    assert learn.dls.train is dls.train and len(dls.train_ds) == 16 and len(back.dls.train_ds) == 0 and list(back.dls.vocab) == CLASSES
    assert torch.equal(back.get_preds(dl=back.dls.test_dl(dls.valid_ds.items, with_labels=True))[0], learn.get_preds()[0])
    learn.show_results(ds_idx=0, max_n=2)
    plt.close('all')
    learn.lr_find(num_it=20, show_plot=False)

def test_device():
    dls = image_datasets().microcluster_dataloaders(bs=4, num_workers=0, device='cpu', after_batch=[Normalize.from_stats(*imagenet_stats, cuda=False)])
    assert dls.train.device == dls.train.dl.device == torch.device('cpu')
    assert dls.to('meta') is dls and dls.device == 'meta' and dls.train.device == dls.train.dl.device == torch.device('meta')
    assert dls.train.after_batch.fs[0].mean.device.type == 'meta' and dls.train.one_batch()[0].device.type == 'meta'
    assert dls.train.new().device == torch.device('meta')
    tensors = MicroClusterDL(loader_of(numbered(), cls=TensorDL), 2)
    tensors.to('meta')
    assert [t.device.type for t in tensors.one_batch()] == ['meta']*2 and len(tensors.one_batch()[0]) == 8

def test_settings_made_later_count():
    "As on any fastai loader: `shuffle`, `bs`, `drop_last`, `after_item`, `after_batch` and `rng` may be set"
    dl = MicroClusterDL(loader_of(bs=5), 2)
    dl.shuffle = False
    assert mains(dl, 2) == list(range(16))
    dl.bs,dl.drop_last = 3,True
    assert len(dl) == 5 and [len(x) for x,_ in dl] == [6]*5
    dl.after_item = Pipeline(ItemTransform(lambda o: (o[0]+100, o[1])))
    assert min(i for x,_ in numbers(dl) for i in x) >= 100
    dl.rng = random.Random(1)
    a = numbers(dl)
    dl.rng = random.Random(1)
    assert numbers(dl) == a

def test_add_tfms():
    dls = image_datasets().microcluster_dataloaders(bs=4, num_workers=0, device='cpu')
    dls.add_tfms([ItemTransform(lambda o: (o[0]*0, o[1]))], 'after_batch', 'train')
    dls.add_tfms([ItemTransform(lambda o: (o[0], o[1]*0))], 'after_item', 'train')
    x,y = dls.train.one_batch()
    assert not x.any() and not y.any()

# Pairs

def halves(b): return (lambda x,y: (x[:len(x)//2], x[len(x)//2:], y[:len(y)//2], y[len(y)//2:]))(*b)

@pytest.mark.parametrize('cls', [TfmdDL, TensorDL])
@pytest.mark.parametrize('matched', [False, True])
@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('bs', [1, 5, 16, 40])
def test_pairs(cls, matched, bs, drop_last):
    ds = numbered() if cls is TensorDL else Items()
    dl,its = PairedDL(loader_of(ds, bs, cls=cls, drop_last=drop_last), matched),loader_of(ds, bs, cls=cls, drop_last=drop_last)
    for _ in range(3):
        got,want = numbers(dl),numbers(its)
        assert len(got) == len(want) == len(dl)
        first,second = [],[]
        for b,(x,y) in zip(got, want):
            x1,x2,y1,y2 = halves(b)
            assert x1 == x and y1 == y and len(x2) == len(x1) and y2 == [LABELS[i] for i in x2]
            if matched: assert sorted(y1) == sorted(y2)
            first += x1; second += x2
        if not drop_last: assert sorted(first) == sorted(second) == list(range(16))
        assert len(set(second)) == len(second)

@pytest.mark.parametrize('y,choices', [([0]*4, 24), ([0]*3+[1]*3, 36)])
def test_second_batch_is_independent_of_the_first(y, choices):
    "Which sample stands below which is a uniform permutation: of all, or, if matched, of each class"
    n,draws = len(y),40*choices
    dl,seen = PairedDL(loader_of(numbered(n, y), bs=n, cls=TensorDL), choices == 36),collections.Counter()
    for _ in range(draws):
        x1,x2,*_ = halves(numbers(dl)[0])
        seen[tuple(b for _,b in sorted(zip(x1, x2)))] += 1
    assert len(seen) == choices and .001 < chi2.sf(sum((c-40)**2/40 for c in seen.values()), choices-1) < .999

def test_pairs_share_samples_as_often_as_chance():
    dl,shared = PairedDL(loader_of(numbered(), bs=4, cls=TensorDL)),[]
    for _ in range(400): shared += [len({*b[0][:4]} & {*b[0][4:]}) for b in numbers(dl)]
    assert abs(np.mean(shared) - 1) < .1                               # 4·4/16

@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('matched', [False, True])
@pytest.mark.parametrize('bs', [4, 5])
def test_active(bs, matched, num_workers):
    asked,ds = [],Items()
    dl = PairedDL(loader_of(ds, bs, num_workers=num_workers), matched, active=lambda i: asked.append(i) or i % 2 == 1)
    want = numbers(loader_of(bs=bs))
    got = numbers(dl)
    assert [x[:len(w)] for (x,_),(w,_) in zip(got, want)] == [w for w,_ in want] and len(got) == len(want)
    assert [len(x) for x,_ in got] == [len(w)*(1+i%2) for i,(w,_) in enumerate(want)] and {*range(len(dl))} <= {*asked}
    if not num_workers: assert ds.reads == [i for x,_ in got for i in x]           # no item of a second batch that is not there
    if matched:
        for x,y in got[1::2]: assert sorted(y[:len(y)//2]) == sorted(y[len(y)//2:])

def test_active_is_asked_each_epoch():
    on = []
    dl = PairedDL(loader_of(), active=lambda i: bool(on))
    assert [len(x) for x,_ in dl] == [4]*4
    on.append(1)
    assert [len(x) for x,_ in dl] == [8]*4
    assert [len(x) for x,_ in PairedDL(loader_of(), active=lambda i: 0)] == [4]*4

def test_pairs_of_text_and_tables():
    dsets = text_datasets()
    dl = PairedDL(dsets.dataloaders(bs=4, before_batch=pad_input, num_workers=0, device='cpu').train)
    for x,y in dl: assert x.shape[0] == len(y) == 8
    to = TabularPandas(frame(), [Categorify], ['shape'], ['row'], y_names='kind', splits=[list(range(24)), list(range(24, 30))])
    dl = PairedDL(to.dataloaders(bs=4, device='cpu', dl_type=TabDataLoader).train, matched=True)
    for cats,conts,y in dl: assert len(y) == 8 and y[:4].view(-1).sort()[0].tolist() == y[4:].view(-1).sort()[0].tolist()

def test_empty_data_sets():
    assert numbers(PairedDL(loader_of(Items([]), shuffle=False), active=lambda i: True)) == numbers(PairedDL(loader_of(Items([]), shuffle=False))) == []

# Errors

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter([(tensor(1.), 0)]*6)

class Endless:
    "Indexed, of unknown length"
    def __getitem__(self, i): return tensor(1.), 0

@pytest.mark.parametrize('wrap', [lambda *a, **k: MicroClusterDL(*a, 2, labels=[0]*16, **k), lambda *a, **k: PairedDL(*a, **k)], ids=['clusters','pairs'])
@pytest.mark.parametrize('make,message', [
    (lambda: torch.utils.data.DataLoader(Items()), 'torch DataLoader'), (lambda: MicroClusterDL(loader_of(), 2), 'MicroClusterDL$'), (lambda: PairedDL(loader_of()), 'PairedDL$'),
    (Stream, 'Stream cannot be'), (lambda: TfmdDL(Stream(), bs=2), 'Stream cannot be'), (lambda: TfmdDL(Items(), bs=None), 'batches of its own'),
    (lambda: TfmdDL(Endless(), bs=2), 'length')], ids=['torch','clusters','pairs','stream','stream loader','bs=None','no length'])
def test_loaders_that_cannot_be(make, message, wrap):
    with pytest.raises(TypeError, match=message): wrap(make())

def test_arguments_belong_to_the_loader():
    with pytest.raises(TypeError, match='bs, shuffle belong to the loader'): MicroClusterDL(loader_of(), 2, bs=4, shuffle=True)
    with pytest.raises(TypeError, match='bs belong'): PairedDL(loader_of(), bs=4)

@pytest.mark.parametrize('k', [0, -1, 1.5, '2', None])
def test_bad_k(k):
    with pytest.raises(ValueError, match='`k`'): MicroClusterDL(loader_of(), k)

def test_numpy_integers_are_whole_numbers(): assert numbers(MicroClusterDL(loader_of(), np.int64(2))) == numbers(MicroClusterDL(loader_of(), 2))

# Few labels and many

def test_semisup_dls_of_every_kind(tmp_path):
    "Tensors, `Datasets` of files, a table: balanced, nothing lost, validation the user's own"
    from PIL import Image
    files = []
    for i in range(30):
        d = tmp_path/'ab'[i % 2]; d.mkdir(exist_ok=True)
        Image.fromarray(np.full((8,8), i*8, dtype=np.uint8)).save(d/f'{i}.png')
    import fastai.tabular.all as tab
    df = pd.DataFrame(dict(a=np.arange(30.), b=np.arange(30.)[::-1], y=['u','v']*15))
    kinds = {'tensors': tensor_dls(data(30, 2), data(12), bs=8, device='cpu'), 'files': ImageDataLoaders.from_folder(tmp_path, valid_pct=.2, seed=0, bs=4, num_workers=0, device='cpu'),
             'table': tab.TabularDataLoaders.from_df(df, cont_names=['a','b'], y_names='y', valid_idx=list(range(24,30)), bs=4, procs=[tab.Normalize], device='cpu'),
             'items': DataLoaders.from_dsets(list(zip(*data(30, 2))), list(zip(*data(12))), bs=8, num_workers=0, device='cpu')}
    for kind,dls in kinds.items():
        rng = dls.train.rng.getstate()
        few,rest = semisup_dls(dls, 6, seed=1)
        n = len(dls.train.dataset)
        assert np.bincount(labels_of(few.train)).tolist() == [3,3] and len(rest.dataset) == n - 6 and few.valid is dls.valid and dls.train.rng.getstate() == rng, kind
        again,_ = semisup_dls(dls, 6, seed=1)
        other,_ = semisup_dls(dls, 6, seed=2)
        first = lambda d: torch.stack([torch.as_tensor(np.array(tensor(t) if not isinstance(t, Tensor) else t), dtype=torch.float32).flatten() for t in (d.train.dataset[i][0] for i in range(6))]) if kind not in ('table',) else torch.tensor(d.train.dataset.items[['a']].values)
        assert torch.equal(first(few), first(again)) and not torch.equal(first(few), first(other)), kind
        b = few.train.one_batch()
        assert len(b[-1]) == min(6, dls.train.bs) and len(rest.one_batch()[0]) == dls.train.bs, kind
    for n,match in ((7, ['n_labeled=7']), (30, ['n_labeled=30', 'nothing is left']), (40, ['n_labeled=40']), (0, ['n_labeled=0'])):
        raises(['semisup_dls', *match], lambda: semisup_dls(kinds['tensors'], n))

# A part of the training set is held out

def _pairs(files):
    "fastai's siamese tutorial: a `TfmdLists` of pairs of files"
    class Pairs(Transform):
        def encodes(self, f): return tensor(np.asarray(PILImage.create(f))).float(), tensor(np.asarray(PILImage.create(files[0]))).float(), float(f.parent.name == files[0].parent.name)
    return TfmdLists(files, Pairs(), splits=[list(range(12)), list(range(12, 18))]).dataloaders(bs=4, num_workers=0, device='cpu')

def held_out_kinds(path):
    "Loaders of every kind by name"
    files = get_image_files(image_folder(path)).sorted()
    table = pd.DataFrame(dict(f=files.map(str), y=files.map(parent_label)))
    df = frame(40).assign(grade=lambda d: d.grade.where(d.index % 7 > 0))
    to = TabularPandas(df, [Categorify, FillMissing, Normalize], ['shape'], ['row','grade'], y_names='kind', splits=[list(range(30)), list(range(30, 40))])
    words = pd.DataFrame(dict(text=['a b c'*(1+i%5) for i in range(40)], label=['+-'[i%2] for i in range(40)], is_valid=[i >= 30 for i in range(40)]))
    many = DataBlock((ImageBlock, MultiCategoryBlock), get_x=ItemGetter(0), get_y=Pipeline([ItemGetter(1), lambda o: o.split(' ')]), splitter=IndexSplitter(range(12, 18)))
    both = [(f, f'{f.parent.name} {"odd" if i%2 else "even"}') for i,f in enumerate(files)]
    one = lambda **kw: dict(bs=4, num_workers=0, device='cpu', **kw)
    return {'tensors': tensor_dls(data(30), data(12), bs=8, device='cpu'), 'files': image_block(item_tfms=RandomResizedCrop(8)).dataloaders(path, **one()),
            'table of files': ImageDataLoaders.from_df(table, path='/', valid_pct=.3, seed=1, **one()), 'many labels': many.dataloaders(both, **one()),
            'table': to.dataloaders(bs=8, device='cpu'), 'text': TextDataLoaders.from_df(words, text_col='text', label_col='label', valid_col='is_valid', tok_tfm=BySpace(), **one()),
            'items': items_dls(list(zip(*data(30)))), 'pairs': _pairs(files),
            'weighted': image_datasets().weighted_dataloaders(np.arange(1., 17.), **one()), 'partial': image_datasets().partial_dataloaders(9, **one()),
            'first': DataLoaders(loader_of(n=10), loader_of(shuffle=False), device='cpu')}

class BySpace:
    def __call__(self, items): return (t.split(' ') for t in items)

def ids(ds):
    "What tells the items of a data set apart"
    if isinstance(ds, TensorItems): return [x.sum().item() for x in ds.tensors[0]]
    if isinstance(ds, Subset): return [i for i in ds.indices]
    if isinstance(getattr(ds, 'items', None), pd.DataFrame): return list(ds.items.index)
    if isinstance(ds, Datasets): its = ds.tls[0].items; return list(its.index) if isinstance(its, pd.DataFrame) else [str(o) for o in its]
    if isinstance(ds, TfmdLists): return [str(o) for o in ds.items]
    return list(range(len(ds)))

def n_of(b): return len(b[-1])

def test_held_out_dls_of_every_kind(tmp_path):
    "The parts are disjoint and together all that is drawn, loaded in full, and the user's loaders and random states are left alone"
    for kind,dls in held_out_kinds(tmp_path).items():
        rng,states,train = dls.train.rng.getstate(),random_state(),dls.train
        held = held_out_dls(dls, .3, seed=3)
        assert dls.train is train and dls.train.rng.getstate() == rng and random_state() == states and len(held.loaders) == 2, kind
        all_ids,a,b = (ids(o.dataset) for o in (dls.train, held.train, held.valid))
        drawn = all_ids[:10] if kind == 'first' else all_ids
        assert sorted(map(str, a+b)) == sorted(map(str, drawn)) and not set(a) & set(b) and len(b) == math.ceil(.3*len(drawn)), kind
        assert type(held.train) is type(dls.train) and type(held.valid) is type(dls.valid) and held.train.bs == min(dls.train.bs, len(a)), kind
        assert sum(map(n_of, held.valid)) == len(b) and sum(map(n_of, held.train)) > 0, kind
        again,other = held_out_dls(dls, .3, seed=3),held_out_dls(dls, .3, seed=4)
        assert ids(again.valid.dataset) == b != ids(other.valid.dataset), kind
        if kind in ('tensors','files','table of files','table','text'):
            counts = lambda l: np.bincount(labels_of(l), minlength=2)
            assert np.abs(counts(held.valid) - .3*counts(dls.train)[:len(counts(held.valid))]).max() <= 1, kind

def test_held_out_samples_are_not_augmented(tmp_path):
    "They are transformed as validation samples are, and the rest as training samples"
    block = image_block(item_tfms=RandomResizedCrop(8, min_scale=.3), batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats, cuda=False)])
    dls = block.dataloaders(image_folder(tmp_path), bs=4, num_workers=0, device='cpu')
    held = held_out_dls(dls, .3)
    batches = lambda dl: torch.cat([x for x,_ in dl])
    assert batches(held.valid).equal(batches(held.valid)) and held.valid.dataset.split_idx == 1 and held.train.dataset.split_idx == 0
    files = held.valid.dataset.items
    by_hand = dls.test_dl(files, with_labels=True)
    assert batches(by_hand).equal(batches(held.valid))
    first = lambda: held.train.after_batch(to_device(held.train.do_batch([held.train.do_item(0)]*2), 'cpu'))[0]
    assert not first().equal(first())

def test_held_out_weights_and_the_rest():
    "Weights go with their samples; a batch larger than the part becomes as large as it; what was set by hand stays"
    dls = image_datasets().weighted_dataloaders(np.arange(1., 17.), bs=4, num_workers=0, device='cpu')
    held = held_out_dls(dls, .25, 1)
    was = {str(o): wt for o,wt in zip(dls.train.dataset.tls[0].items, dls.train.wgts)}
    now = np.array([was[str(o)] for o in held.train.dataset.tls[0].items])
    assert held.train.wgts == pytest.approx(now/now.sum())
    big = tensor_dls(data(30), data(12), bs=28, device='cpu')
    big.c = 7
    held = held_out_dls(big, .2)
    assert held.train.bs == 24 and len(held.train) == 1 and held.c == 7 and n_classes_of(held) == 7

def test_held_out_labels_that_are_no_classes():
    "Numbers, and classes of one sample, are split without regard to them"
    x,y = data(30)
    for target in (torch.rand(30), torch.arange(30), torch.rand(30, 2)):
        held = held_out_dls(tensor_dls((x,target), (x,target), bs=8, device='cpu'), .2)
        assert len(held.valid.dataset) == 6 and len(held.train.dataset) == 24

def test_what_cannot_be_held_out():
    dls = tensor_dls(data(), data(12), bs=8, device='cpu')
    torch_dl = torch.utils.data.DataLoader(Items(), batch_size=4)
    given = lambda dl: DataLoaders(dl, dls.valid)
    for make,match in ((lambda: given(torch_dl), 'DataLoader of torch'), (lambda: DataLoaders(dls.train, torch_dl), 'DataLoader of torch'), (lambda: given(MicroClusterDL(dls.train)), 'not a MicroClusterDL'),
                       (lambda: given(TfmdDL(Stream(), bs=2)), 'Stream, which has no length'), (lambda: given(loader_of(get_idxs=lambda: [1,2])), 'given a `get_idxs`')):
        raises(['held_out_dls', match], lambda: held_out_dls(make()), TypeError)
    for share in (0, 1, -.1, .01, 'a'): raises(['held_out_dls', 'share'], lambda: held_out_dls(dls, share))

def test_few_labels_of_a_table_of_files(tmp_path):
    "The items of a loader may be a frame"
    files = get_image_files(image_folder(tmp_path)).sorted()
    dls = ImageDataLoaders.from_df(pd.DataFrame(dict(f=files.map(str), y=files.map(parent_label))), path='/', valid_pct=.2, seed=1, bs=4, num_workers=0, device='cpu')
    few,rest = semisup_dls(dls, 6)
    assert np.bincount(labels_of(few.train)).tolist() == [2,2,2] and len(rest.dataset) == len(dls.train.dataset) - 6 and len(few.train.one_batch()[0]) == 4

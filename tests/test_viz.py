"The drawing functions, and the terms of a fit beside its losses."
import pytest
import matplotlib as mpl
import io
from common import *

pytestmark = pytest.mark.usefixtures('no_figures')

def test_colors():
    assert colors_for(8) == okabe_ito and colors_for(3) == okabe_ito[:3] and colors_for(9) == petroff10[:9] and colors_for(10) == petroff10 and colors_for(0) == []
    for n in (11,40,100): assert len(colors_for(n)) == n == len(set(colors_for(n))) and all(mpl.colors.is_color_like(c) for c in colors_for(n))
    got = methods_colors(['a','baseline','b'])
    assert got == {'a': okabe_ito[0], 'baseline': '#000000', 'b': okabe_ito[1]} and list(methods_colors(range(20)))[-1] == 19 and '#000000' not in methods_colors(map(str, range(20))).values()

def test_style():
    before = dict(mpl.rcParams)
    class E(Exception): pass
    @styled
    def f(a, b=2):
        "doc"
        assert all(mpl.rcParams[k] == v for k,v in latent_style.items())
        if b == 0: raise E
        return a+b
    assert f(1) == 3 and f.__name__ == 'f' and f.__doc__ == 'doc' and dict(mpl.rcParams) == before
    for g,exc,match in ((lambda: f(1, b=0),E,None), (lambda: plot_points(np.zeros((3,2)), np.zeros(4)),ValueError,'one label a sample is needed, 3 in all'), (lambda: axes_for([1,2], 3),ValueError,'3 axes are needed'), (lambda: plot_lines([0,1], {'a': [1,2,3]}),ValueError,'first dimension')):
        with pytest.raises(exc, match=match): g()
        assert dict(mpl.rcParams) == before
    try:
        use_style()
        assert all(mpl.rcParams[k] == v for k,v in latent_style.items())
        with in_style(): pass
        assert all(mpl.rcParams[k] == v for k,v in latent_style.items())
    finally: mpl.rcParams.update(before)

def test_axes_for():
    axs = axes_for(None, 5, ncols=3)
    assert axs.shape == (5,) and len(axs[0].figure.axes) == 6 and not axs[0].figure.axes[5].axison and axs[0].figure.get_size_inches().tolist() == [9.3,5.8]
    two = axes_for(n=2, sharey=True)
    assert two[0].get_shared_y_axes().joined(*two) and axes_for(n=2, figsize=(4,2))[0].figure.get_size_inches().tolist() == [4,2]
    fig,grid = plt.subplots(2, 2)
    assert axes_for(grid, 4).tolist() == grid.flatten().tolist() and axes_for(list(grid[0]), 2).tolist() == grid[0].tolist() and axes_for(grid[0,0]).tolist() == [grid[0,0]] and axes_for(tuple(grid[1]), 2).tolist() == grid[1].tolist() and axes_for(L(*grid[1]), 2).tolist() == grid[1].tolist()
    for ax,n,held in ((grid,3,4), (grid[0,0],2,1), ([],1,0)):
        with pytest.raises(ValueError, match=f'{n} axes are needed, and `ax` holds {held}'): axes_for(ax, n)

@pytest.mark.parametrize('as_', [np.asarray, torch.as_tensor, lambda a: torch.as_tensor(a).requires_grad_() if np.asarray(a).dtype.kind == 'f' else TensorCategory(a)], ids=['numpy','tensor','subclass'])
def test_points_of_any_kind(as_):
    xy,y = np.random.default_rng(0).random((30,2), dtype=np.float32),np.arange(30)%4
    assert points(plot_points(as_(xy), as_(y))) == expected(xy, y, 4)
    ax = plot_class_histograms(as_(xy[:,0]), as_(y), bins=4)
    assert [p.get_data().values.sum() for p in ax.patches if p.get_fill()] == [8,8,7,7] and (ax.get_xlabel(),ax.get_ylabel()) == ('activation','samples')

def test_many_points_are_drawn_as_pixels_and_the_same_ones_each_time():
    xy,y = np.random.default_rng(0).random((6000,2)),np.arange(6000)%3
    a,b = plot_points(xy, y),plot_points(xy, y)
    assert a.get_title() == '5,000 of 6,000 samples' and points(a) == points(b) and points(a).total() == 5000 and a.collections[0].get_rasterized() and not plot_points(xy[:2000], y[:2000]).collections[0].get_rasterized()
    for k,t in enumerate(a.texts): close(t.get_position(), np.median(xy[y == k], axis=0), eps=1e-9)   # of all points

def test_lines():
    runs = np.random.default_rng(0).random((3,5))
    ax = plot_lines(range(5), {'baseline': np.arange(5), 'mine': runs, 'tensor': torch.arange(5.)}, 'x', 'y')
    assert [l.get_label() for l in ax.lines] == ['baseline','mine','tensor'] and [l.get_linestyle() for l in ax.lines] == ['--','-','-'] and [mpl.colors.to_hex(l.get_color()) for l in ax.lines] == [c.lower() for c in methods_colors(['baseline','mine','tensor']).values()]
    close(ax.lines[1].get_ydata(), runs.mean(0), eps=1e-12); close(ax.lines[2].get_ydata(), np.arange(5), eps=1e-12)
    band = ax.collections[0].get_paths()[0].vertices
    for x in range(5):
        close(sorted(set(band[band[:,0] == x,1].round(9)))[::max(1, len(set(band[band[:,0] == x,1].round(9)))-1)], (runs[:,x].mean()-runs[:,x].std(),runs[:,x].mean()+runs[:,x].std()), eps=1e-6)
    assert len(ax.collections) == 1 and (ax.get_xlabel(),ax.get_ylabel()) == ('x','y') and plot_lines([0], {'a': [1]}, legend=False).get_legend() is None
    assert len(plot_lines([0,1], {f'm{k}': [k,k] for k in range(12)}).lines) == 12

def test_bins():
    bins = pd.DataFrame(dict(count=[10,30], confidence=[.3,.9], accuracy=[.5,.8]))
    ax = plot_bins(bins, 'title')
    assert ax.get_title() == 'title' and ax.texts[0].get_text() == 'ECE 0.125' and ax.collections[-1].get_sizes().tolist() == [85,235] and ax.get_aspect() == 1

def test_surfaces():
    g = plane((-1,1), (0,3), 3)
    assert g.tolist() == [[-1,0],[0,0],[1,0],[-1,1.5],[0,1.5],[1,1.5],[-1,3],[0,3],[1,3]] and plane((0,1), (0,1)).shape == (40000,2)
    p = np.array([[1.,0,0],[0,1,0],[1/3,1/3,1/3],[.6,.2,.2]])
    c = surface_colors(p)
    rgb = np.array([mpl.colors.to_rgb(o) for o in colors_for(3)])
    most = (1-c[0]).max()/(1-rgb[0]).max()                                            # how much of a colour is not white where its class is sure
    assert .3 < most <= 1
    close(c[0], 1-most*(1-rgb[0]), eps=1e-9); close(c[1], 1-most*(1-rgb[1]), eps=1e-9); close(c[2], 1, eps=1e-9); close(c[3], 1-most*.4*(1-rgb[0]), eps=1e-9)
    close(surface_colors(torch.tensor(p), ['r','g','b'])[0], [1,1-most,1-most], eps=1e-9)
    g = plane((-2,2), (0,1), 21)
    right = 1/(1+np.exp(-5*g[:,0]))
    for probs in (np.stack([1-right,right], 1), np.stack([1-right,right/2,right/2], 1)):
        ax = plot_surface(torch.tensor(probs), (-2,2), (0,1))
        im = ax.images[0]
        close(im.get_array(), surface_colors(probs).reshape(21,21,3), eps=1e-6)
        assert im.origin == 'lower' and im.get_extent() == [-2,2,0,1] and (ax.get_xlim(),ax.get_ylim()) == ((-2,2),(0,1)) and len(ax.collections) == (probs.shape[1] == 2)
        if probs.shape[1] == 2: close(np.concatenate([q.vertices[:,0] for q in ax.collections[0].get_paths()]), 0, eps=1e-6)

# Terms beside the losses

def finite(learn, k): v = np.array(learn.recorder.terms[k]); return np.isfinite(v).nonzero()[0],v[np.isfinite(v)]

@pytest.mark.parametrize('epochs', [2,8])
def test_plot_latent(epochs):
    "Each term where it is finite; beyond 20 steps a moving average too"
    learn = uneven_learner()
    learn.fit(epochs, 1e-2, cbs=[VarianceRegularizer(1.),ITRA(warmup=.4),LatentMonitor(2)])
    axs = learn.recorder.plot_latent(figsize=(7,6))
    terms = ['cw_vr_loss','itra_c_loss','pair_distance_loss','cw_variance_loss']
    assert [a.get_ylabel() for a in axs] == ['loss',*terms] and axs[-1].get_xlabel() == 'step' and axs[0].figure.get_size_inches().tolist() == [7,6] and len(learn.recorder.losses) == 3*epochs
    for a,k in zip(axs[1:], terms):
        at,v = finite(learn, k)
        assert len(a.lines) == 1 + (3*epochs > 20) and all(l.get_xdata().tolist() == at.tolist() for l in a.lines) and 0 < len(at) <= 3*epochs and (k == 'cw_vr_loss') == (len(at) == 3*epochs)
        close(a.lines[0].get_ydata(), v, eps=1e-9)
        alpha,num,den,smooth = 2/(max(1, len(v)/20)+1),0,0,[]
        for t in v: num,den = num*(1-alpha)+t,den*(1-alpha)+1; smooth.append(num/den)
        close(a.lines[-1].get_ydata(), smooth, eps=1e-9)
    assert finite(learn, 'itra_c_loss')[0].min() == math.ceil(.4*3*epochs)                 # a warm-up is left out
    close(axs[0].lines[0].get_ydata(), [float(l) for l in learn.recorder.losses], eps=1e-9)
    valid = axs[0].lines[1]
    assert valid.get_xdata().tolist() == [3*e+2 for e in range(epochs)] and [t.get_text() for t in axs[0].get_legend().get_texts()] == ['train','valid']; close(valid.get_ydata(), [v[1] for v in learn.recorder.values], eps=1e-9)
    fig,mine = plt.subplots(5)
    assert learn.recorder.plot_latent(ax=mine).tolist() == mine.tolist()
    with pytest.raises(ValueError, match='5 axes are needed, and `ax` holds 1'): learn.recorder.plot_latent(ax=mine[0])
    fig.canvas.draw()

def test_plot_latent_without_terms():
    learn = uneven_learner()
    with pytest.raises(ValueError, match='plot_latent: there is nothing to draw before the first fit'): learn.recorder.plot_latent()
    assert not plt.get_fignums()
    learn.fit(2, 1e-2)
    axs = learn.recorder.plot_latent()
    assert len(axs) == 1 and len(axs[0].lines) == 2 and axs[0].get_xlabel() == 'step'
    learn.fit(1, 1e-2, cbs=ITRA(warmup=.99))                                          # a term that was never computed
    assert len(learn.recorder.plot_latent()) == 1

def test_plot_latent_with_no_losses():
    "`validate` calls fastai's `before_fit`, after which there are losses, but none"
    learn = uneven_learner()
    learn.validate()
    with pytest.raises(ValueError, match='plot_latent'): learn.recorder.plot_latent()

@pytest.mark.parametrize('how', ['train metrics','no time','resumed','no validation','some validation','interrupted'])
def test_validation_losses_stand_at_their_steps(how):
    "Where validation is cancelled, the mean of a term takes the column of the validation loss: it is not drawn"
    learn,n = uneven_learner(cbs=LatentMonitor(1)),[0]
    def cancel(l):
        n[0] += 1
        if how == 'no validation' or how == 'some validation' and n[0] == 2: raise CancelValidException()
    if how == 'train metrics': learn.recorder.train_metrics = True
    if how == 'no time': learn.recorder.add_time = False
    if how == 'interrupted':
        with pytest.raises(KeyboardInterrupt): learn.fit(3, 1e-2, cbs=Probe(run_valid=False, after_loss=lambda l: l.epoch == 2 and l.iter == 1 and (_ for _ in ()).throw(KeyboardInterrupt())))
    else: learn.fit(3, 1e-2, start_epoch=how == 'resumed', cbs=Probe(before_validate=cancel))
    ax = learn.recorder.plot_latent()[0]
    want = {'resumed': [2,5], 'no validation': [], 'some validation': [2,8], 'interrupted': [2,5]}.get(how, [2,5,8])
    assert [l.get_xdata().tolist() for l in ax.lines[1:]] == [want]*bool(want)
    names = learn.recorder.metric_names
    if want: close(ax.lines[1].get_ydata(), [v[names.index('valid_loss')-1] for v in learn.recorder.values if len(v) == len(names)-1-learn.recorder.add_time], eps=1e-9)

def test_terms_of_an_earlier_fit_are_not_drawn():
    learn = uneven_learner()
    learn.fit(1, 1e-2, cbs=ITRA(warmup=0.))
    learn.fit(2, 1e-2)
    assert len(learn.recorder.plot_latent()) == 1

# Other types, and names as they are

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16,torch.float64,torch.int16], ids=plain)
def test_tensors_of_any_type(dtype):
    "NumPy has no bfloat16"
    g = torch.Generator().manual_seed(0)
    t = (4*torch.rand(36, 3, generator=g)).to(dtype); a = t.float().numpy(); y = torch.arange(36)%4
    assert points(plot_points(t[:,:2], y)) == expected(a[:,:2], y, 4) == points(plot_points(t[:,:2], y.to(dtype)))
    assert plot_points(t, y).name == '3d'
    h = plot_class_histograms(t[:,0], y.to(dtype), bins=5)
    assert [p.get_data().values.tolist() for p in h.patches] == [p.get_data().values.tolist() for p in plot_class_histograms(a[:,0], y.numpy(), bins=5).patches]
    l = plot_lines(t[:,0], {'one': t[:,1], 'runs': t.T, 'list': [t[:,0],t[:,1]]})
    assert np.allclose(l.lines[0].get_ydata(), a[:,1]) and np.allclose(l.lines[0].get_xdata(), a[:,0]) and np.allclose(l.lines[1].get_ydata(), a.mean(1)) and np.allclose(l.lines[2].get_ydata(), a[:,:2].mean(1))
    if not t.is_floating_point(): return
    p = torch.rand(36, 3, generator=g).to(dtype).softmax(1)
    assert np.allclose(surface_colors(p), surface_colors(p.float().numpy())) and plot_surface(p, (0,1), (0,1)).images

def test_surfaces_of_one_output():
    p = torch.rand(16, generator=torch.Generator().manual_seed(0))
    both = torch.stack([1-p,p], 1)
    for one in (p,p[:,None],p.numpy()): assert np.allclose(surface_colors(one), surface_colors(both)) and plot_surface(one, (0,1), (0,1)).images

def test_samples_without_a_label_are_not_drawn():
    xy,y = np.random.default_rng(0).random((30,2), dtype=np.float32),np.arange(30)%4
    for ignored,kw in ((-100,{}), (9,dict(ignore_index=9)), (1,dict(ignore_index=1))):
        some = np.where(np.arange(30)%3 == 0, ignored, y)
        has = some != ignored
        assert points(plot_points(xy, some, **kw)) == points(plot_points(xy[has], some[has]))
        a,b = plot_class_histograms(xy[:,0], some, bins=4, **kw),plot_class_histograms(xy[has,0], some[has], bins=4)
        assert [p.get_data().values.tolist() for p in a.patches] == [p.get_data().values.tolist() for p in b.patches]
    for f in (lambda y: plot_points(xy, y), lambda y: plot_class_histograms(xy[:,0], y)):
        for bad,said in ((y-1,'[-1, 0, 1, 2, -1]'), (y+.5,'[0.5'), (np.array(['a']*30),"['a'"), (y[:9],'30 in all'), (np.where(y == 1, np.nan, y),'nan')): raises(['labels',said], lambda: f(bad))
        assert f(y[:,None]).has_data() and f(y == 0).has_data() and f(torch.from_numpy(y == 0)).has_data()

NAMES = ['US$','$x_$','a$b$c','_background','a_b^{','C:\\$']
def seen(text):
    "What matplotlib draws for `text`, which must be no formula"
    s,math = text._preprocess_math(text.get_text())
    assert not math
    return s.strip()
def test_names_are_drawn_as_they_are():
    "What is between two dollars would be a formula, and one that cannot be read fails when the figure is saved"
    xy,y = np.random.default_rng(0).random((30,2)),np.arange(30)%len(NAMES)
    a,b,c = plot_points(xy, y, NAMES),plot_points(xy, y, NAMES, names='legend'),plot_class_histograms(xy[:,0], y, NAMES)
    assert [seen(t) for t in a.texts] == NAMES
    d = plot_lines([0,1], {n: [0,1] for n in NAMES})
    for ax in (b,c,d): assert [seen(t) for t in ax.get_legend().get_texts()] == NAMES
    for ax in (a,b,c,d): ax.figure.savefig(io.BytesIO())
    e = plot_lines([0,1], {'a': [0,1]}, xlabel=r'$\lambda$')                          # a text of one's own may be a formula
    e.figure.savefig(io.BytesIO()); assert e.get_xlabel() == r'$\lambda$'

"""The zoo: models × callbacks, each cell checked by what was really mixed or penalised, and the page that shows them.

    python tests/zoo.py                       # tries all cells and prints what is not right
    python tests/zoo.py --only BERT --cb VR   # some of them; -v prints all
    python tests/zoo.py --write               # writes what came of it into the page nbs/zoo.ipynb

What is right is computed here by plain torch hooks on a twin of the network, and shares no code with the library."""
import argparse, gc, json, re, time, warnings
from collections import Counter, defaultdict
from pathlib import Path
from fastai.vision.all import *
from latentreg_fastai.all import *
from zoo_models import *

PAGE = Path(__file__).parents[1]/'nbs/zoo.ipynb'

class Wrong(Exception): "What happened is not what the callback says"
def need(ok, msg):
    if not ok: raise Wrong(msg)

# Tensors in whatever a module takes or gives

def tensors(o):
    if isinstance(o, Tensor): return [o]
    if isinstance(o, dict): o = list(o.values())
    if isinstance(o, (tuple,list)): return [t for p in o for t in tensors(p)]
    return []
def like(f, o):
    if isinstance(o, Tensor): return f(o)
    if isinstance(o, dict): return type(o)(**{k: like(f, v) for k,v in o.items()})
    if not isinstance(o, (tuple,list)): return o
    return type(o)(*[like(f, v) for v in o]) if hasattr(o, '_fields') else tuple(like(f, v) for v in o)
def plain(t): return t.as_subclass(Tensor)
def copy_of(o): return like(lambda t: plain(t.detach()).clone(), o)
def cat(a, b):
    if isinstance(a, Tensor): return torch.cat([plain(a), plain(b)])
    if isinstance(a, dict): return {k: cat(a[k], b[k]) for k in a}
    return tuple(cat(*p) for p in zip(a, b))
def rows_of(xb): return len(tensors(xb)[0])

class Events:
    "What every module of a network takes and gives, in the order in which it happens"
    def __init__(self, model):
        self.seen = []
        def look(name, kind): return lambda m, args, kw, *out: self.seen.append((name, kind, [plain(t.detach()).clone() for t in tensors(out if kind == 'out' else [args, kw])]))
        self.handles = []
        for n,m in model.named_modules():
            if isinstance(m, torch.jit.ScriptModule): continue
            self.handles += [m.register_forward_pre_hook(look(n, 'in'), with_kwargs=True), m.register_forward_hook(look(n, 'out'), with_kwargs=True)]
    def close(self):
        for h in self.handles: h.remove()

@contextmanager
def at(model, place, f):
    """Call `f` with what passes at `place`, and let what it returns go on: the output of a layer, or 'name:input', or with '#2' in the second pass alone"""
    place,_,which = place.partition('#')
    name,_,side = place.partition(':')
    m,passes = dict(model.named_modules())[name],[]
    def one(o):
        passes.append(1)
        return f(o) if not which or len(passes) == int(which) else None
    h = m.register_forward_pre_hook(lambda m, a: one(a)) if side else m.register_forward_hook(lambda m, a, o: one(o))
    try: yield
    finally: h.remove()

# The papers' terms, in slow loops

def flat(z): return z.flatten(1).double() if z.ndim > 1 else z[:,None].double()
def var(z): return ((z - z.mean(0))**2).mean(0)
def vr(z): return var(flat(z)).mean()
def cw_vr(z, y): return sum(vr(z[y==k]) for k in range(K) if (y==k).any())/K
def cr(z):
    z = flat(z)
    z = z - z.mean(0)
    i = z.shape[1]
    if i > 1000: return ((z@z.T)**2).sum().sub(((z**2).sum(0)**2).sum())/len(z)**2/(i*(i-1))   # the same, without a matrix of I × I
    c = z.T@z/len(z)
    return (c**2).sum().sub((c.diagonal()**2).sum())/(i*(i-1)) if i > 1 else z.sum()*0
def cw_cr(z, y): return sum(cr(z[y==k]) for k in range(K) if (y==k).any())/K
def act_l1(z): return flat(z).abs().mean()
def dist(a, b): return ((flat(a)[:,None] - flat(b)[None])**2).sum(-1)
def sigma_of(z):
    d = dist(z, z).detach()
    return torch.stack([d[i,j] for i in range(len(z)) for j in range(i)]).sort()[0][(len(z)*(len(z)-1)//2-1)//2]
def mmd_of(a, b, s):
    k = lambda a,b: torch.exp(-dist(a, b)/s).mean()
    v = k(a, a) + k(b, b) - 2*k(a, b)
    return v.clamp_min(1e-30).sqrt() if v > 1e-6 else v*0
def itra_c(z1, y1, z2, y2):
    s = sigma_of(torch.cat([z1, z2]))
    return sum(mmd_of(z1[y1==k], z2[y2==k], s) for k in range(K) if (y1==k).any() and (y2==k).any())/K
def pair_dist(z1, y1, z2, y2):
    d = dist(z1, z2).sqrt()
    return d[y1[:,None]==y2[None]].mean()/d.mean()

# One fit of a cell, watched

class First(Callback):
    "Keeps the batch as it was loaded, and the network as it was"
    order,run_valid = -100,False
    def before_batch(self): self.watcher.begin(self.learn)
class Last(Callback):
    order,run_valid = 1000,False
    def before_batch(self): self.watcher.watch(self.learn)
    def after_pred(self): self.watcher.predicted(self.learn)
    def after_backward(self): self.watcher.differentiated(self.learn)
    def after_batch(self): self.watcher.ended(self.learn)

class Watcher:
    "Base of the checks of a kind of callback: `check` is called after each backward pass"
    n,events,quiet,alive,only_input = 2*BS,False,False,None,False
    def __init__(self, net, where='place', refused=False): self.net,self.where,self.refused,self.checked,self.sites,self.said = net,where,refused,0,set(),[]
    def callbacks(self, make): return make(self.net)
    def fit(self, make, epochs=1):
        net = self.net
        set_seed(0)
        hush = quiet if self.quiet else noop
        model = hush(awake(net.make()))
        with no_random(): self.twin = hush((net.twin or net.make)())
        learn = Learner(net.dls(self.n), model, loss_func=net.loss, cbs=net.cbs(), opt_func=SGD)
        if net.learner: net.learner(learn)
        for p,q in zip(model.parameters(), self.twin.parameters()): q.requires_grad_(p.requires_grad)
        self.learn,self.start = learn,{k: v.clone() for k,v in model.state_dict().items()}
        self.cbs = self.callbacks(make)
        watchers = [First(),Last()]
        for w in watchers: object.__setattr__(w, 'watcher', self)
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, cbs=[*self.cbs, *watchers])
        self.finish()
        need(self.checked, 'no step was checked')
    def place(self): return getattr(self.net, self.where) or (self.net.place if self.where == 'head' else None)
    @contextmanager
    def same_draws(self):
        "Dropout as in the model's own pass"
        with torch.random.fork_rng([]): torch.set_rng_state(self.draws_at); yield
    def begin(self, l):
        self.x,self.y = copy_of(l.xb),copy_of(l.yb)
        self.twin.load_state_dict({re.sub(r'^(module|_orig_mod)\.|(?<=\.)_orig_mod\.', '', k): v for k,v in l.model.state_dict().items()})
        self.twin.train()
    def watch(self, l):
        self.own,self.targets = copy_of(l.xb),copy_of(l.yb)      # as they are when the model runs
        self.rec = Events(l.model) if self.events and not self.net.opaque else None
        self.draws_at = torch.get_rng_state()
        self.args = []
        self._h = l.model.register_forward_pre_hook(lambda m, a: self.args.append(copy_of(a)))
    def predicted(self, l):
        self._h.remove()
        if self.rec: self.rec.close()
        self.pred = copy_of(l.pred)
    def differentiated(self, l): self.grads = {n: None if p.grad is None else p.grad.clone() for n,p in l.model.named_parameters()}; self.loss,self.total = copy_of(l.loss),copy_of(l.loss_grad)
    def ended(self, l):
        self.check(l)
        self.checked += 1
    def check(self, l): pass
    def finish(self): pass
    def out(self, o): return plain(self.net.out(o)).flatten(1) if self.net.out(o).ndim > 1 else plain(self.net.out(o))[:,None]
    def loss_of(self, out, y): return self.net.each(out, *y).mean()
    def clean(self, x):
        with self.same_draws(): return self.net.pred(self.twin(*x))
    def terms(self, name): return self.learn.recorder.terms[name]
    def same_grads(self, loss, extra, what):
        "The gradients are those of `loss` + `extra` in the twin"
        ps = [(n,p) for n,p in self.twin.named_parameters() if p.requires_grad]
        gs = torch.autograd.grad(loss + extra, [p for _,p in ps], allow_unused=True, retain_graph=True)
        ex = torch.autograd.grad(extra, [p for _,p in ps], allow_unused=True) if extra.requires_grad else [None]*len(ps)
        mine = {re.sub(r'^(module|_orig_mod)\.|(?<=\.)_orig_mod\.', '', n): g for n,g in self.grads.items()}
        z = lambda t,p: torch.zeros_like(p) if t is None else t
        err = sum((z(mine[n], p) - z(g, p)).double().square().sum() for (n,p),g in zip(ps, gs))**.5
        size,all_ = (sum(z(e, p).double().square().sum() for (n,p),e in zip(ps, es))**.5 for es in (ex,gs))
        self.alive = self.alive or bool(size > 0)
        if size == 0: size = all_
        need(err <= .02*size + 1e-5*all_, f'the gradient is not that of the loss and {what}: off by {float(err/size):.2g} of it')

def near(a, b, eps=1e-3): return abs(float(a) - float(b)) <= eps*max(abs(float(b)), 1e-6) + 1e-7

# Mixing: the first place where the pass differs from that of the unmixed batch holds λ·own + (1−λ)·partner's;
# and with λ = 0 the prediction for a row is that for its partner, which is so only if all of the signal was mixed, once

def share(lam, t): return lam if not isinstance(lam, Tensor) else lam.view(-1, *[1]*(t.ndim-1)).to(t)

class Mixing(Watcher):
    n,events,quiet = 8*BS,True,True
    def callbacks(self, make):
        cb = make(self.net)
        self.cb,self.draws,self.step,self.want = cb,[],0,{0: set(), 1: set()}
        draw = cb.draw
        def _draw(n, *a, **k):
            draw(n, *a, **k)
            if self.step % 2: cb.lam = cb.lam*0
            self.draws.append((cb.lam,cb.shift))
        cb.draw = _draw
        if hasattr(cb, 'draw_site'):
            site = cb.draw_site
            def _site():
                "A place that was not looked at before, if there is one"
                for _ in range(40):
                    s = site()
                    if str(s) not in self.want[self.step % 2]: break
                self.want[self.step % 2].add(str(s))
                return s
            cb.draw_site = _site
        return [cb]
    def begin(self, l): super().begin(l); self.draws = []
    def watch(self, l):
        super().watch(l)
        rows = getattr(self.cb, 'rows', None)
        self.more = copy_of(rows.inputs) if rows is not None and rows.inputs else None
    def predicted(self, l):
        super().predicted(l)
        rows = getattr(self.cb, 'rows', None)
        self.outputs = copy_of(rows.outputs) if self.more else None
    def unmixed(self):
        "A pass of the twin over the batch as it was loaded"
        rec,self.args_ = Events(self.twin),cat(self.x, self.more) if self.more else self.x
        try: out = self.clean(self.args_)
        finally: rec.close()
        return rec.seen,out
    def ended(self, l): super().ended(l); self.step += 1
    def check(self, l):
        n,parts = len(self.y[0]),[(slice(0, len(self.y[0])),*self.draws[0])]
        seen,out = self.unmixed()
        if self.more: parts.append((slice(n, None),*self.draws[1]))
        for rows,lam,shift in parts: self.check_rows(out, rows, lam, shift)
        if not self.step % 2 and not self.net.opaque: self.check_first(seen, parts)
        self.check_loss(l, *parts[0][1:])
        self.sites.add(str(getattr(self.cb, 'site', '')))
    def check_rows(self, out, rows, lam, shift):
        clean = self.out(out)[rows].detach()
        mate = clean.roll(shift, 0)
        if self.net.masked and self.step % 2:                # masks stay those of the row
            if self.more: return
            with at(self.twin, str(self.cb.site), partial(like, lambda t: t.roll(shift, 0) if t.is_floating_point() else t)): mate = self.out(self.clean(self.x))
        if rows.start: pred = self.out(self.outputs)
        else: pred = self.out(self.pred)
        spread = (clean - clean.roll(1, 0)).abs().max()
        need(spread > 1e-5, f'the zoo: predictions do not differ ({float(spread):.1g})')
        where = str(getattr(self.cb, 'site', 'the input'))
        if self.step % 2:
            err = (pred - mate).abs().max()/spread
            need(err < .01, f'at {where}: with λ = 0 the prediction is not the partner\'s, by {float(err):.2g} of what rows differ: some of the signal goes round, or is mixed twice')
        else:
            need((pred - clean).abs().max() > 1e-4*spread or self.tiny(lam), f'at {where}: nothing was mixed')
    def tiny(self, lam): return float(torch.as_tensor(lam).float().min()) > .995
    def check_first(self, seen, parts):
        "The first place where anything differs"
        where,N = str(getattr(self.cb, 'site', 'the input')),rows_of(self.args_)
        need([e[:2] for e in self.rec.seen] == [e[:2] for e in seen], f'at {where}: other layers were passed than without mixing')
        for (name,kind,ts),(_,_,us) in zip(self.rec.seen, seen):
            what,off = f"at {where}: what {name or 'the model'} {'gives' if kind == 'out' else 'takes'}",False
            for t,u in zip(ts, us):
                if not t.is_floating_point() or t.ndim == 0 or t.numel() == 0: continue
                need(t.shape == u.shape, f'{what} has another shape than without mixing')
                gap = (u - u.roll(1, 0)).abs().max()
                if (t - u).abs().max() <= 1e-4*(gap + 1e-6): continue
                need(len(t) == N, f'{what} has not one row a sample, and was changed')
                off = True
                for rows,lam,shift in parts:
                    own,mine = u[rows],t[rows]
                    err = min((mine - w).abs().max()/gap for w in (own, torch.lerp(own.roll(shift, 0), own, share(lam, own))))   # unmixed so far, or mixed as it should be
                    need(err < 1e-3, f"{what} is not λ·own + (1−λ)·partner's, by {float(err):.2g}")
            if off: return
    def check_loss(self, l, lam, shift):
        y,out = self.y,self.pred
        if any(not t.is_floating_point() for t in y):
            y2 = tuple(t.roll(shift, 0) for t in y)
            mix = [t if not t.is_floating_point() else torch.lerp(u, t, share(lam, t)) for t,u in zip(y, y2)]
            other = [u if not t.is_floating_point() else m for t,u,m in zip(y, y2, mix)]
            a,b = self.net.each(out, *mix),self.net.each(out, *other)
            want = (share(lam, a)*a + (1-share(lam, a))*b).mean()
        else: want = self.net.each(out, *[torch.lerp(t.roll(shift, 0), t, share(lam, t)) for t in y]).mean()
        need(near(self.loss, want, 2e-3), f'the loss is {float(self.loss):.4g}, and that of the mixed targets {float(want):.4g}')
        need(near(self.total, want, 2e-3) or isinstance(self, Semi), f'what is differentiated is {float(self.total):.4g}, and the loss of the mixed targets {float(want):.4g}')
    def finish(self):
        if not hasattr(self.cb, 'draw_site'): return
        self.said.append(', '.join(sorted(self.sites, key=lambda s: (s != 'input', s))))
        self.only_input = self.sites == {'input'} and getattr(self.cb, 'eligible', None) in (None,'all') and self.net.named

class Semi(Mixing):
    def check(self, l):
        super().check(l)
        if not self.step % 2: return
        soft = self.twin.eval()
        with torch.no_grad(): p = soft(*self.more)
        soft.train()
        act = getattr(self.net.loss, 'activation', partial(F.softmax, dim=1))
        one = lambda o: act(plain(tensors(self.net.pred(o))[0]))
        want = F.mse_loss(one(self.outputs), one(p).roll(self.draws[1][1], 0))
        need(near(self.cb_term(l), want, 1e-2) or abs(float(self.cb_term(l)) - float(want)) < 1e-6, f'the consistency is {float(self.cb_term(l)):.4g}, and should be {float(want):.4g}')
    def cb_term(self, l): return self.term
    def differentiated(self, l): super().differentiated(l); self.term = self.cb.term

class InputMixing(Mixing):
    "VarMixup: the model takes the decoded mixtures"
    events,quiet = False,False
    def check(self, l):
        lam,shift = self.draws[0]
        vae = self.cb.vae
        with torch.no_grad(): z = vae.encode(self.x[0]); want = vae.decode(lam*z + (1-lam)*z.roll(shift, 0))
        need(torch.allclose(plain(self.args[0][0]), want, atol=1e-5), 'the inputs are not the decoded mixtures')
        mine,its = self.out(self.pred),self.out(self.clean((want,*self.x[1:])))
        need((mine - its).abs().max() < 1e-2*(its - its.roll(1, 0)).abs().max(), 'the prediction is not that of the decoded mixtures')
        self.check_loss(l, lam, shift)
    def finish(self): pass

# Penalties: the term is that of the features at the place, as they left it, and so is the gradient

class Penalties(Watcher):
    "Of one place; `terms` is a list of names"
    def callbacks(self, make): self.centers = None; return make(self.net)
    def features(self, xs):
        "Output of the twin and features at the right place"
        if self.place() is None: return self.twin(*xs),None
        found = []
        with at(self.twin, self.place(), lambda o: found.append(tensors(o)[self.net.takes if self.where == 'named' else 0]*1)), self.same_draws(): out = self.twin(*xs)   # a copy, before anything acts in place on it
        return out,found[-1]
    def check(self, l):
        out,z = self.features(self.args[0])
        y,total = plain(self.y[0]).view(-1) if self.y[0].numel() == len(self.y[0]) else plain(self.y[0]),0
        self.want = getattr(self, 'want', defaultdict(list))
        for cb in self.cbs:
            name,term = cb.term_name,self.term_of(cb, z, y)
            self.want[name].append(float(term.detach()))
            if getattr(cb, 'site', None): self.sites.add(str(cb.site))
            total = total + cb.weight*term
        self.same_grads(self.loss_of(self.net.pred(out), self.y), total.float() if isinstance(total, Tensor) else torch.tensor(0.), 'the term')
    def term_of(self, cb, z, y):
        kind,cw = type(cb).__name__,getattr(cb, 'classwise', False)
        if kind == 'WeightL1': return sum(p.abs().sum() for p in {id(p): p for p in self.twin.parameters()}.values() if p.ndim > 1 and p.requires_grad)
        need(z is not None, f'took {cb.site}, where the zoo knows of no place')
        if kind == 'VarianceRegularizer': return cw_vr(z, y) if cw else vr(z)
        if kind == 'CovarianceRegularizer': return cw_cr(z, y) if cw else cr(z)
        if kind == 'ActivationL1': return act_l1(z)
        if kind == 'CenterLoss':
            f = flat(z)
            if self.centers is None: self.centers = torch.zeros(K, f.shape[1]).double()
            res = sum(((f[i] - self.centers[y[i]])**2).sum() for i in range(len(y)))/2/len(y)
            old = self.centers.clone()
            for k in range(K):
                mine = f.detach()[y==k]
                self.centers[k] -= cb.lr*(old[k]*len(mine) - mine.sum(0))/(1+len(mine))
            return res
    def finish(self):
        for cb in self.cbs:
            got = self.terms(cb.term_name)
            need(len(got) == len(self.want[cb.term_name]) and all(near(*p) for p in zip(got, self.want[cb.term_name])),
                 f"the column is {', '.join(f'{v:.4g}' for v in got)}, and at {self.place()} it is {', '.join(f'{v:.4g}' for v in self.want[cb.term_name])}"
                 f" (it took {', '.join(self.sites)})")
        self.said += [', '.join(sorted(self.sites))]*bool(self.sites)

class Aligned(Penalties):
    def callbacks(self, make): self.queue = []; return super().callbacks(make)
    def watch(self, l):
        super().watch(l)
        cb = self.cbs[0]
        if cb.source == 'dataset': self.n_own,self.second = len(l.yb[0]),plain(cb.rows.targets[0]).view(-1).clone()
    def check(self, l):
        if self.cbs[0].source == 'dataset': self.y = self.targets
        super().check(l)
    def term_of(self, cb, z, y):
        need(z is not None, f'took {cb.site}, where the zoo knows of no place')
        if cb.source == 'dataset': return itra_c(z[:self.n_own], y, z[self.n_own:], self.second)
        if cb.source == 'split': n = len(z)//2; return itra_c(z[:n], y[:n], z[n:], y[n:])
        before,self.queue = self.queue,[*self.queue,(z.detach(),y)]
        return itra_c(z, y, *map(torch.cat, zip(*before))) if before else z.sum()*0
    def features(self, xs):
        out,z = super().features(xs)
        if self.cbs[0].source == 'dataset': out = first_rows(self.net.pred(out), self.n_own, rows_of(xs))
        return out,z

def first_rows(o, n, total): return like(lambda t: t[:n] if t.ndim and len(t) == total else t, o)
def last_rows(o, n, total): return like(lambda t: t[n:] if t.ndim and len(t) == total else t, o)

class Phantoms(Watcher):
    "Eq. 3: the head runs on the embeddings and on the means of their clusters"
    def watch(self, l):
        super().watch(l)
        self.n_own = len(l.yb[0])
    def check(self, l):
        cb,n,y = self.cbs[0],self.n_own,plain(self.targets[0]).view(-1)
        need(self.place() is not None, f'took {cb.site}, where the zoo knows of no place')
        total = rows_of(self.args[0])
        def means(z):
            if not z.is_floating_point() or len(z) != total: return z
            if cb.source == 'dataset': return torch.cat([z[:n], (z[:n] + z[n:])/2])
            order = [self.partner(cb, y, i) for i in range(n)]
            return torch.cat([z, torch.stack([(z[i] + z[j])/2 for i,j in enumerate(order)])])
        with at(self.twin, self.place(), partial(like, means)), self.same_draws(): out = self.net.pred(self.twin(*self.args[0]))
        own,other = first_rows(out, n, 2*n),last_rows(out, n, 2*n)
        loss = cb.share*self.loss_of(own, self.targets) + (1-cb.share)*self.loss_of(other, self.targets)
        need(near(self.total, loss, 2e-3), f'what is differentiated is {float(self.total):.4g}, and Eq. 3 at {self.place()} gives {float(loss):.4g} (it took {cb.site})')
        self.same_grads(loss, torch.tensor(0.), 'phantoms')
        self.said = [str(cb.site)]
    def partner(self, cb, y, i):
        "With `source='batch'`: the next of its class in the order that the callback drew"
        order = self.order.tolist()
        mine = [j for j in order if y[j] == y[i]]
        return mine[(mine.index(i)+1) % len(mine)]
    def predicted(self, l): super().predicted(l); self.order = getattr(self.cbs[0], '_order', None)
    def same_grads(self, loss, extra, what): super().same_grads(loss*0, loss, what)

class Disturbed(Watcher):
    def check(self, l):
        now = self.targets[0]
        need(all(torch.equal(*p) for p in zip(tensors(self.args[0]), tensors(self.x))), 'the inputs changed')
        need(now.dtype == self.y[0].dtype and now.shape == self.y[0].shape and 0 <= int(now.min()) and int(now.max()) < K, 'a label is no class')
        self.changed = getattr(self, 'changed', 0) + int((now != self.y[0]).sum())
        out = self.clean(self.x)
        need(near(self.loss, self.loss_of(out, self.targets), 2e-3), 'the loss is not that of the disturbed labels')
    def finish(self): need(self.changed > 0, 'no label was disturbed')

class Monitored(Watcher):
    n = 4*BS
    def ended(self, l):
        x,y = self.x,plain(self.y[0]).view(-1)
        super().ended(l)
        self.want = getattr(self, 'want', [])
        i = len(self.want)
        if i % 2:
            self.begin(l)
            self.twin.eval()
            zs = []
            for xb in (self.before[0], x):
                with torch.no_grad(), at(self.twin, self.place(), lambda o: zs.append(tensors(o)[0]*1)): self.twin(*xb)
            need(len(zs) == 2, 'the zoo: the place was not passed once')
            self.want.append((float(pair_dist(zs[-2], self.before[1], zs[-1], y)), float(cw_vr(zs[-1], y))))
        else: self.want.append(None)
        self.before = x,y
    def finish(self):
        for k,name in enumerate(('pair_distance','cw_variance')):
            got,want = [v for v in self.terms(next(c for c in self.learn.recorder.terms if c.startswith(name))) if v == v],[w[k] for w in self.want if w]
            need(len(got) == len(want) and all(near(*p, 5e-3) for p in zip(got, want)), f'{name} is {got}, and should be {want} at {self.place()}')

# The callbacks

class TinyVAE(nn.Module):
    "For rows of any one shape"
    def __init__(self, shape):
        super().__init__()
        self.shape,n = tuple(shape),math.prod(shape)
        self.enc,self.dec = nn.Linear(n, 5),nn.Linear(5, n)
    def encode(self, x): return self.enc(x.flatten(1))
    def decode(self, z): return self.dec(z).view(-1, *self.shape)

def unlabeled(net):
    "Batches of inputs like the learner's"
    with no_random(7):
        dl = net.dls(2*BS).train
        xs = [dl.one_batch() for _ in range(2)]
        n = getattr(net.dls(2*BS), 'n_inp', 1)
        return [tuple(copy_of(b[:n])) for b in xs]

def vae_of(net):
    with no_random(7): x = tensors(net.dls(2*BS).train.one_batch())[0]
    return TinyVAE(x.shape[1:])

W = 10.
# name: (column's group, the check, what makes the callbacks of a net, epochs)
CALLBACKS = {
    'ManifoldMixup()':                  ('mixing', Mixing, lambda n: ManifoldMixup()),
    'ManifoldMixup(layers=[])':         ('mixing', Mixing, lambda n: ManifoldMixup(layers=[])),
    "ManifoldMixup(layers='all')":      ('mixing', Mixing, lambda n: ManifoldMixup(layers='all')),
    'ManifoldMixup(per_item=True)':     ('mixing', Mixing, lambda n: ManifoldMixup(per_item=True)),
    'ManifoldMixup, a layer named':     ('mixing', Mixing, lambda n: ManifoldMixup(layers=n.named, input_mixup=False) if n.named else None),
    'ManifoldMixup, a branch named':    ('mixing', partial(Mixing, refused=True), lambda n: ManifoldMixup(layers=n.bad, input_mixup=False) if n.bad else None),
    'ManifoldMixup, a layer passed several times': ('mixing', Mixing, lambda n: ManifoldMixup(layers=n.twice, input_mixup=False) if n.twice else None),
    'SemiSupervisedMixup':              ('mixing', Semi, lambda n: SemiSupervisedMixup(unlabeled(n), weight=3., rampup=0., alpha_labeled=1.)),
    'VarMixup':                         ('mixing', InputMixing, lambda n: VarMixup(vae_of(n))),
    'VarianceRegularizer (cw-VR)':      ('penalties', Penalties, lambda n: [VarianceRegularizer(W)]),
    'VarianceRegularizer (VR)':         ('penalties', Penalties, lambda n: [VarianceRegularizer(W, classwise=False)]),
    'CovarianceRegularizer (cw-CR)':    ('penalties', Penalties, lambda n: [CovarianceRegularizer(W)]),
    'CovarianceRegularizer (CR)':       ('penalties', Penalties, lambda n: [CovarianceRegularizer(W, classwise=False)]),
    'ActivationL1':                     ('penalties', Penalties, lambda n: [ActivationL1(W)]),
    'CenterLoss':                       ('penalties', Penalties, lambda n: [CenterLoss()]),
    'ActivationL1, a layer named':      ('penalties', partial(Penalties, where='named'), lambda n: [ActivationL1(W, layer=n.named)] if n.named else None),
    'VarianceRegularizer (VR), behind BatchNorm or Dropout': ('penalties', partial(Penalties, where='behind'), lambda n: [VarianceRegularizer(W, classwise=False, layer=n.behind)] if n.behind else None),
    'WeightL1':                         ('penalties', Penalties, lambda n: [WeightL1(.01)]),
    'ITRA':                             ('pairs', Aligned, lambda n: [ITRA(W, warmup=0.)]),
    "ITRA(source='split')":             ('pairs', Aligned, lambda n: [ITRA(W, source='split', warmup=0.)]),
    "ITRA(source='queue')":             ('pairs', Aligned, lambda n: [ITRA(W, source='queue', warmup=0.)]),
    'PhantomEmbedding':                 ('pairs', partial(Phantoms, where='head'), lambda n: [PhantomEmbedding(alpha=2.)]),
    "PhantomEmbedding(source='batch')": ('pairs', partial(Phantoms, where='head'), lambda n: [PhantomEmbedding(alpha=2., source='batch')]),
    'PhantomEmbedding, a branch named': ('pairs', partial(Phantoms, where='bad', refused=True), lambda n: [PhantomEmbedding(alpha=2., layer=n.bad)] if n.bad else None),
    'DisturbLabel':                     ('pairs', Disturbed, lambda n: [DisturbLabel(.9)]),
    'LatentMonitor':                    ('pairs', Monitored, lambda n: [LatentMonitor(2)]),
}
TOGETHER = [k for k,(_,c,_) in CALLBACKS.items() if c is Penalties]

# GANs: λ·h(x₁) + (1−λ)·h(x₂), and with λ = 1 the critic's opinion of x₁ alone

class Critics(Watcher):
    "The term is the loss of the critic on the mixtures that `pairs` gave it"
    def fit(self, make):
        self.cb,self.taken,self.sites,self.now = make(self.net),[],set(),None
        learn = self.learn = self.net.gan()
        self.cbs,self.start,self.twin,pairs = [self.cb],{k: v.clone() for k,v in learn.model.state_dict().items()},self.net.make(),self.cb.pairs
        def _pairs(real, fake):
            if len(self.taken) % 2: self.cb.lam = 1.
            self.taken.append(1)
            self.now = (*pairs(real, fake),self.cb.lam,str(self.cb.site))
            return self.now[:3]
        self.cb.pairs = _pairs
        def before(l): self.twin.load_state_dict(l.model.critic.state_dict())
        def after(l): self.check(l)
        learn.fit(4, 1e-3, cbs=[self.cb, Calls(-100, before_batch=before), Calls(1000, after_backward=after)])
        need(self.checked, 'no step was checked')
        self.said = [', '.join(sorted(self.sites, key=lambda s: (s != 'input', s)))]
    def check(self, l):
        if self.now is None: return
        x1,x2,y,lam,site = self.now
        self.now,n = None,len(x1)
        loss = lambda p: F.binary_cross_entropy_with_logits(p.view(-1), y)
        lerp = partial(like, lambda t: lam*t[:n] + (1-lam)*t[n:] if len(t) == 2*n else t)
        x = torch.cat([plain(x1), plain(x2)])
        if lam == 1: want = loss(self.twin(plain(x1)))
        elif site == 'input': want = loss(self.twin(lerp(x)))
        else:
            with at(self.twin, site, lerp): want = loss(self.twin(x))
        need(near(self.cb.term, want, 2e-3), f'at {site}, λ = {lam:.2g}: the term is {float(self.cb.term):.4g}, and should be {float(want):.4g}')
        self.checked += 1
        self.sites.add(site)

class Calls(Callback):
    "Calls functions at events of training"
    run_valid = False
    def __init__(self, order, **fs):
        self.order = order
        for k,f in fs.items(): object.__setattr__(self, k, partial(lambda f: f(self.learn), f))

GANS = {
    'GANMixup()':                   ('gan', Critics, lambda n: GANMixup()),
    'GANMixup(layers=[])':          ('gan', Critics, lambda n: GANMixup(layers=[])),
    'GANMixup, a layer named':      ('gan', Critics, lambda n: GANMixup(layers=n.named, input_mixup=False) if n.named else None),
    'GANMixup, a branch named':     ('gan', partial(Critics, refused=True), lambda n: GANMixup(layers=n.bad, input_mixup=False) if n.bad else None),
    'GANMixup, a layer passed several times': ('gan', Critics, lambda n: GANMixup(layers=n.twice, input_mixup=False) if n.twice else None),
}
ALL = CALLBACKS|GANS

# The cells

NAMES = 'ManifoldMixup SemiSupervisedMixup VarMixup VarianceRegularizer CovarianceRegularizer ActivationL1 CenterLoss WeightL1 ITRA PhantomEmbedding DisturbLabel LatentMonitor GANMixup'.split()
SAYS = re.compile(r'^(' + '|'.join([*NAMES, *map(camel2snake, NAMES)]) + r')(_\d+)?: ')
def short(e): return re.sub(r'\s+', ' ', re.sub(r'^Exception occured in `\w+` when calling event `\w+`:\s*', '', str(e)))
def ours(e):
    "Was `e` raised by a callback of the library, and does it say so?"
    return isinstance(e, (ValueError,TypeError,IndexError)) and bool(SAYS.match(short(e)))

def cell(net, cb, make=None):
    "('works', where), ('note', where, what is said), ('refuses', why), ('–',) or ('WRONG', what)"
    _,check,make_ = ALL[cb]
    if (make or make_)(net) is None: return ('–',)
    w = check(net)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            w.fit(make or make_)
    except Wrong as e: return ('WRONG','accepts it; ' * w.refused + short(e))
    except Exception as e:
        if not ours(e): return ('WRONG',f"an error that is not the library's own: {type(e).__name__}: {short(e)[:200]}")
        l = w.learn
        changed = [k for k,v in l.model.named_parameters() if not torch.equal(v, w.start[k])]   # buffers may be those of the batch in which it was noticed
        left = [h for m in l.model.modules() for d in (m._forward_hooks,m._forward_pre_hooks) for h in d.values() if 'latentreg' in getattr(getattr(h, 'func', h), '__module__', '')]
        if w.checked or changed: return ('WRONG',f'refuses after {w.checked} steps, or changes {changed[:3]}: {short(e)}')
        return ('WRONG',f'refuses, and leaves a hook: {short(e)}') if left else ('refuses',short(e))
    mine = sorted({short(m.message) for m in said if SAYS.match(short(m.message))})
    if w.refused: return ('WRONG','accepts a place that some of the signal goes round')
    if w.only_input and not mine: return ('WRONG','only the input is mixed, and nothing tells')
    if w.where == 'behind' and not mine: return ('WRONG','nothing warns of a place behind BatchNorm or Dropout')
    if w.alive is False and not mine: return ('WRONG','the gradient of the term reaches no trained weight, and nothing tells')
    return ('note','; '.join(w.said),'; '.join(mine)) if mine else ('works','; '.join(w.said))

def row(net, cbs=None):
    "The cells of a model"
    res,cbs = {},list(cbs or (GANS if net.gan else CALLBACKS))
    both = [k for k in TOGETHER if k in cbs]
    if len(both) > 2:                                        # all penalties in one fit; where that is not right, one by one
        c = cell(net, both[0], lambda n: [cb for k in both for cb in CALLBACKS[k][2](n)])
        if c[0] == 'works': res.update({k: c for k in both})
    for k in cbs:
        if k not in res: res[k] = cell(net, k)
    gc.collect()
    return {k: res[k] for k in cbs}

# The page

REASONS = {                                                  # in this order: what the error says, and what it means
    'splits the batch':                  '`nn.DataParallel` splits the batch where a callback cannot see it. Use `learn.distrib_ctx()`.',
    'traced or scripted':                'What `torch.jit` traced has no layers to be looked into. Take the model that it was made of.',
    'within torch.func':                 'What `torch.vmap` runs is one sample without its batch, so that there are no rows to be mixed or compared.',
    'runs without gradients':            'What `torch.utils.checkpoint(use_reentrant=True)` runs has no gradients in its forward pass. Use `use_reentrant=False`.',
    'the model computes its loss itself|the inputs hold labels': 'The model computes its loss from labels among its inputs, which a callback does not change ([companions](companions.ipynb)).',
    'is the last layer with weights|no layer with weights|not those of one layer': 'No one layer makes the prediction, or none that can be told, so `layer` must be given.',
    'is passed by on the way to output': 'Another output, of which the loss is made too, does not pass this layer. The error names others.',
    'never reached':                     'The forward pass never comes to this layer.',
    'not all of the signal passes|does not reach the prediction': 'Some of the signal goes round this layer, as in a residual block, or what it gives is not used. The error names layers that would do.',
    'does not give one floating row a sample': 'What this layer gives has not one row a sample, as (length, N, units) or the state of a recurrent layer. The error names others.',
    'rows were expected':                'The model picks rows by the number of its inputs, so none can be made within it. Take `source=\'dataset\'`.',
    'integer label a sample|not one integer a sample|number of classes is not known': 'The targets are no classes: masks, numbers or several labels. `classwise=False`, where there is one, does without.',
    'needs a batch of images':           'VarMixup mixes images, the only input and of floating numbers; this model takes something else.',
    'must take a `reduction`':           'A λ for each sample needs a loss function that takes a `reduction`, and this one is a plain function of predictions and targets.',
}
NOTES = {
    'torch.compile compiled':            'The callback acts within what `torch.compile` compiled, so the steps of the fit run uncompiled; validation and inference do not.',
    'the input alone is mixed':          'No layer was found where all of the signal passes, so the input alone is mixed (of tokens their embeddings).',
    'is behind':                         'The layer named is behind BatchNorm, LayerNorm or Dropout, which takes much of the effect from a penalty: take the layer before.',
    'nothing that is trained lies below': 'All that is below the layer named is frozen, so the penalty trains nothing.',
}
COLUMNS = {
    'ManifoldMixup':              ['ManifoldMixup()',"ManifoldMixup(layers='all')"],
    'input only':                 ['ManifoldMixup(layers=[])'],
    'a λ per sample':             ['ManifoldMixup(per_item=True)'],
    'a layer':                    ['ManifoldMixup, a layer named'],
    'a layer on a branch':        ['ManifoldMixup, a branch named','PhantomEmbedding, a branch named'],
    'a layer passed again':       ['ManifoldMixup, a layer passed several times'],
    'SemiSup. Mixup':             ['SemiSupervisedMixup'],
    'VarMixup':                   ['VarMixup'],
    'VR, CR, Activation L1':      ['VarianceRegularizer (VR)','CovarianceRegularizer (CR)','ActivationL1'],
    'cw-VR, cw-CR, CenterLoss':   ['VarianceRegularizer (cw-VR)','CovarianceRegularizer (cw-CR)','CenterLoss'],
    'a penalty at a layer':       ['ActivationL1, a layer named','VarianceRegularizer (VR), behind BatchNorm or Dropout'],
    'WeightL1':                   ['WeightL1'],
    'ITRA':                       ['ITRA',"ITRA(source='split')","ITRA(source='queue')"],
    'Phantom':                    ['PhantomEmbedding'],
    "Phantom, 'batch'":           ["PhantomEmbedding(source='batch')"],
    'Disturb Label':              ['DisturbLabel'],
    'Latent Monitor':             ['LatentMonitor'],
}
GAN_COLUMNS = {k.replace('GANMixup, ', ''): [k] for k in GANS}
assert {k for ks in COLUMNS.values() for k in ks} == {*CALLBACKS}

def sign(c)->str:
    "✓, ✓ and a letter, ✗ and a number"
    if c[0] in ('works','–'): return {'works': '✓', '–': ''}[c[0]]
    names,said = (NOTES,c[2]) if c[0] == 'note' else (REASONS,c[1])
    i = next((i for i,r in enumerate(names) if re.search(r, said)), None)
    assert c[0] != 'WRONG' and i is not None, c
    return f'✓{chr(97+i)}' if c[0] == 'note' else f'✗{i+1}'

def places(cells, k):
    return f'`{cells[k][1]}`'.replace(', ', '`, `') if cells.get(k, ('',))[0] in ('works','note') else ''

def line(net, cells)->str:
    "The row of the page"
    wrong = {k: c for k,c in cells.items() if c[0] == 'WRONG'}
    assert not wrong, '\n'.join(f'{net.name}, {k}: {c[1]}' for k,c in wrong.items())
    signs = [' / '.join(dict.fromkeys(s for k in ks if (s := sign(cells[k])))) for ks in (GAN_COLUMNS if net.gan else COLUMNS).values()]
    name = f'**{net.name}**' + f'<br>{net.note}' * bool(net.note)
    where = [places(cells, 'GANMixup()')] if net.gan else [places(cells, 'ManifoldMixup()'), places(cells, 'ActivationL1')]
    return f"| {' | '.join([name, *where, *signs])} |"

def head(group):
    gan = next(n for n in NETS.values() if n.group == group).gan
    cols = ['', 'GANMixup mixes', *GAN_COLUMNS] if gan else ['', 'ManifoldMixup mixes', 'penalties are at', *COLUMNS]
    return f"| {' | '.join(cols)} |\n{'|---'*len(cols)}|"
def groups(): return list(dict.fromkeys(n.group for n in NETS.values()))
def table(lines)->str:
    "All groups, from the lines of the models"
    return '\n\n'.join([MARK['table']] + [f'### {g}\n\n{head(g)}\n' + '\n'.join(lines[n.name] for n in NETS.values() if n.group == g and n.name in lines) for g in groups()])
def notes()->str:
    return '\n'.join([MARK['notes'], *[f'{i}. {t}' for i,t in enumerate(REASONS.values(), 1)], '', *[f'- **{chr(97+i)}** {t}' for i,t in enumerate(NOTES.values())]])
MARK = {k: f'<!-- {k} -->' for k in ('table','notes')}

def page(): return json.loads(PAGE.read_text())
def written(k)->str: return next(s for c in page()['cells'] if (s := ''.join(c['source'])).startswith(MARK[k]))
def written_lines()->dict:
    "What the page says of each model"
    return {m[1]: l for l in written('table').splitlines() if (m := re.match(r'\| \*\*(.+?)\*\*', l))}

def write(lines):
    p = page()
    new = {'table': table(lines), 'notes': notes()}
    for c in p['cells']:
        for k,v in new.items():
            if ''.join(c['source']).startswith(MARK[k]): c['source'] = v.splitlines(keepends=True)
    PAGE.write_text(json.dumps(p, indent=1, ensure_ascii=False) + '\n')

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--only', default='', help='models whose name holds this')
    p.add_argument('--cb', default='', help='callbacks whose name holds this')
    p.add_argument('--write', action='store_true', help='write what came of it into the page')
    p.add_argument('-v', action='store_true', help='print all cells')
    a = p.parse_args()
    torch.set_num_threads(1)
    lines,count,start = {},Counter(),time.process_time()
    for n in NETS.values():
        cbs = [k for k in (GANS if n.gan else CALLBACKS) if re.search(a.cb, k)]
        if not re.search(a.only, n.name) or not cbs: continue
        t = time.process_time()
        cells = row(n, cbs)
        count.update(c[0] for c in cells.values())
        print(f'{n.name:45s} {time.process_time()-t:5.1f} s  ', dict(Counter(c[0] for c in cells.values())), flush=True)
        for k,c in cells.items():
            if a.v or c[0] == 'WRONG': print(f"      {k}: {': '.join(c)[:600]}", flush=True)
        if a.cb: continue
        try: lines[n.name] = line(n, cells)
        except AssertionError as e: print(f'      not on the page: {str(e)[:200]}')
    print(f'{time.process_time()-start:.0f} s', dict(count))
    if a.write: write(written_lines() | lines)

if __name__ == '__main__': main()

"""Compare the images per second of fastai and of a bare PyTorch loop, with the same network, batch size and precision

    python nbs/results/throughput.py --out nbs/results/throughput.jsonl

Both hold the same images on the device, scale and normalise them there, and train with SGD with momentum. The last two columns show
what slows the smaller networks down: how much longer a step of fastai takes than one of the bare loop, and how long the step of
fastai's optimizer takes, which goes through the parameters one by one."""
import argparse
from latentreg_fastai.bench import networks, versions, write_record
from latentreg_fastai.bench.run import Autocast
from latentreg_fastai.data.load import tensor_dls
from fastai.vision.all import *
from fastai.callback.channelslast import ChannelsLast

def images(n): return torch.randint(0, 256, (n,3,32,32), dtype=torch.uint8), torch.randint(0, 10, (n,))

def wait(device):
    if device.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()

def cast(device, precision): return torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bf16')

def bare(net, data, bs, device, precision, epochs):
    "Seconds of each epoch of a bare PyTorch loop"
    x,y = (t.to(device) for t in data)
    mean,std = (torch.tensor(s, device=device).view(1,3,1,1) for s in cifar_stats)
    model = networks[net](n_out=10).to(device, memory_format=torch.channels_last)
    opt,times = torch.optim.SGD(model.parameters(), lr=.01, momentum=.9, weight_decay=5e-4),[]
    for _ in range(epochs):
        start = wait(device)
        for i in torch.randperm(len(x), device=device).split(bs):
            if len(i) < bs: continue
            xb = (x[i].float()/255 - mean)/std
            with cast(device, precision): loss = F.cross_entropy(model(xb).float(), y[i])
            loss.backward()
            opt.step(); opt.zero_grad()
        times.append(wait(device) - start)
    return times

class Epochs(Callback):
    "Seconds of each epoch, and of the optimizer's steps in it"
    order = 100
    def before_train(self): self.start,self.opt_s = wait(self.dls.device),0.
    def before_step(self): self.step_start = time.perf_counter()
    def after_step(self): self.opt_s += time.perf_counter() - self.step_start
    def after_train(self): self.times.append(wait(self.dls.device) - self.start); self.opt_times.append(self.opt_s)
    def before_fit(self): self.times,self.opt_times = [],[]
    def before_validate(self): raise CancelValidException

def through_fastai(net, data, bs, device, precision, epochs):
    "Seconds of each epoch of `Learner.fit` over a `TensorDL`, and of its optimizer"
    x,y = data
    dls = tensor_dls((TensorImage(x), TensorCategory(y)), (TensorImage(x[:bs]), TensorCategory(y[:bs])), vocab=list(range(10)), bs=bs,
                     device=device, after_batch=[IntToFloatTensor(), Normalize.from_stats(*cifar_stats, cuda=False)])
    learn = Learner(dls, networks[net](n_out=10).to(device), loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9))
    watch = Epochs()
    cbs = [watch, ChannelsLast()] + ([Autocast('bf16')] if precision == 'bf16' else [])
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .01, wd=5e-4, cbs=cbs)
    return watch.times, watch.opt_times

def measure(net, bs=512, n=50_000, epochs=4, precision='bf16', device=None):
    "A row of the table, from the best epoch of each after the first"
    device = torch.device(device or default_device())
    data,k = images(n),n//bs
    plain,(ours,opt) = bare(net, data, bs, device, precision, epochs),through_fastai(net, data, bs, device, precision, epochs)
    i = 1 + int(np.argmin(ours[1:]))
    a,b = min(plain[1:]),ours[i]
    return dict(net=net, bs=bs, precision=precision, bare_images_s=k*bs/a, fastai_images_s=k*bs/b, ratio=a/b,
                extra_ms=(b-a)/k*1e3, optimizer_ms=opt[i]/k*1e3)

if __name__ == '__main__':
    ap = argparse.ArgumentParser()
    ap.add_argument('--nets', nargs='+', default=['preact_resnet18','resnet18_32','resnet20','cnn'])
    for name,default in (('bs',512),('n',50_000),('epochs',4)): ap.add_argument(f'--{name}', type=int, default=default)
    ap.add_argument('--precision', default='bf16'); ap.add_argument('--device'); ap.add_argument('--out')
    args = ap.parse_args()
    rows = [measure(n, args.bs, args.n, args.epochs, args.precision, args.device) for n in args.nets]
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    device = torch.device(args.device or default_device())
    card = torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
    if args.out: write_record(args.out, dict(rows=rows, card=card, versions=versions()))

"""Two groups, [all else, norms]; weight decay by hand; everything else is the inner optimizer's."""


class OptimWrapper:
    def __init__(self, opt, wd):
        self.opt, self.wd = opt, wd

    @property
    def lr(self):
        return self.opt.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value):
        for group in self.opt.param_groups[:2]:
            group["lr"] = value

    def step(self):
        for group in self.opt.param_groups[:2]:
            for param in group["params"]:
                if param.requires_grad:
                    param.data.mul_(1 - self.wd * self.lr)
        self.opt.step()

    def zero_grad(self):
        self.opt.zero_grad()

    def __getattr__(self, name):
        return getattr(self.opt, name)

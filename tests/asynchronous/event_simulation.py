"""Asynchronous training in NumPy: events in a loop, and rules as lists of gradients.

It shares no code with the library, and no order of computation: gradients are computed
when a worker begins.
"""

import numpy as np


class Workers:
    """Workers that compute; finish times are in the precision of the given times."""

    def __init__(self, times, gradient, start):
        self.times = times
        self.gradient = gradient
        num_workers = times.shape[1]
        self.begun = [0] * num_workers
        self.finish = [None] * num_workers
        self.duration = [0.0] * num_workers
        self.given = [None] * num_workers
        self.result = [None] * num_workers
        self.age = [0] * num_workers
        for worker in range(num_workers):
            self.give(worker, start)
            self.begin(worker, times.dtype.type(0))

    def give(self, worker, params):
        self.given[worker] = params
        self.age[worker] = 0

    def begin(self, worker, now):
        place = self.begun[worker] % len(self.times)
        self.begun[worker] += 1
        self.result[worker] = self.gradient(self.given[worker], worker)
        end = now + self.times[place, worker]
        self.duration[worker] = end - now
        self.finish[worker] = end

    def next(self):
        worker = min(range(len(self.finish)), key=self.finish.__getitem__)
        return worker, self.finish[worker]


class Run:
    """Parameters of a run, and what it has done."""

    def __init__(self, rule, times, gradient, start, step, num_arrivals):
        self.params = start
        self.step = step
        self.num_updates = 0
        self.staleness = []
        self.update_times = []
        self.workers = Workers(times, gradient, start)
        self.num_workers = times.shape[1]
        for _ in range(num_arrivals):
            worker, now = self.workers.next()
            self.now = now
            self.staleness.append(self.workers.age[worker])
            restarted = rule(self, worker, self.workers.result[worker])
            for other in restarted:
                self.workers.give(other, self.params)
            for other in {worker, *restarted}:
                self.workers.begin(other, now)

    def update(self, gradient):
        self.params = self.params - self.step * gradient
        self.num_updates += 1
        self.update_times.append(self.now)
        self.workers.age = [age + 1 for age in self.workers.age]


def every_arrival(run, worker, gradient):
    run.update(gradient)
    return [worker]


def delay_adaptive(run, worker, gradient):
    age = run.workers.age[worker]
    run.update(gradient * min(1, run.num_workers / age) if age else gradient)
    return [worker]


def rescaled():
    seconds = {}

    def arrive(run, worker, gradient):
        seconds.setdefault(worker, []).append(run.workers.duration[worker])
        own = np.mean(seconds[worker])
        of_all = np.mean([np.mean(durations) for durations in seconds.values()])
        run.update(gradient * (own / of_all))
        return [worker]

    return arrive


def ringmaster(threshold, stops):
    def arrive(run, worker, gradient):
        if run.workers.age[worker] >= threshold:
            return [worker]
        run.update(gradient)
        if not stops:
            return [worker]
        ages = enumerate(run.workers.age)
        return [worker, *(i for i, age in ages if age >= threshold and i != worker)]

    return arrive


def rennala(batch_size):
    batch = []

    def arrive(run, worker, gradient):
        if run.workers.age[worker] == 0:
            batch.append(gradient)
        if len(batch) < batch_size:
            return [worker]
        run.update(np.mean(batch, axis=0))
        batch.clear()
        return [*range(run.num_workers)]

    return arrive


def fedbuff(buffer_size):
    buffer = []

    def arrive(run, worker, gradient):
        buffer.append(gradient)
        if len(buffer) == buffer_size:
            run.update(np.mean(buffer, axis=0))
            buffer.clear()
        return [worker]

    return arrive


def ringleader():
    table = {}
    following = {}
    restarted = set()

    def arrive(run, worker, gradient):
        if worker in restarted:
            following.setdefault(worker, []).append(gradient)
            return []
        table.setdefault(worker, []).append(gradient)
        if len(table) < run.num_workers:
            return []
        means = [np.mean(gradients, axis=0) for gradients in table.values()]
        run.update(np.mean(means, axis=0))
        restarted.add(worker)
        if len(restarted) == run.num_workers:
            table.clear()
            table.update(following)
            following.clear()
            restarted.clear()
        return [worker]

    return arrive

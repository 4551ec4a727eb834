package runner

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
)

var errPipelineClosed = errors.New("the pipeline is closed")

// pipeline is raft.AppendPipeline: requests go out without waiting, answers come back to the library in the order of
// the requests, each when it may be counted.
type pipeline struct {
	t    *Transport
	id   raft.ServerID
	node storage.NodeID

	slots  chan struct{}          // one per unanswered request
	done   chan raft.AppendFuture // to the library; never closed; the last place is for the end (Close); sends are under mu
	closed chan struct{}
	close  func()

	mu     sync.Mutex
	queue  []*appendFuture // sent, in order; guarded by mu
	sent   uint64          // index of the last entry that was sent; guarded by mu
	over   bool            // the answer that ends it is given; guarded by mu
	broken bool            // the library does not read its answers, or has given the pipeline up; guarded by mu
}

// appendFuture is one request of a pipeline.
type appendFuture struct {
	start time.Time
	req   *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	err   error
	ready bool          // guarded by pipeline.mu
	wait  chan struct{} // closed when ready
}

func (f *appendFuture) Error() error                          { <-f.wait; return f.err }
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.req }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }

func newPipeline(t *Transport, id raft.ServerID, node storage.NodeID) *pipeline {
	p := &pipeline{t: t, id: id, node: node, slots: make(chan struct{}, maxPipelined),
		done: make(chan raft.AppendFuture, 2*maxPipelined+1), closed: make(chan struct{})}
	p.close = sync.OnceFunc(p.end)
	return p
}

// AppendEntries sends a request; it blocks while too many are unanswered.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	select {
	case p.slots <- struct{}{}:
	case <-p.closed:
		return nil, errPipelineClosed
	case <-p.t.ctx.Done():
		return nil, raft.ErrTransportShutdown
	}
	f := &appendFuture{start: time.Now(), req: args, resp: resp, wait: make(chan struct{})}
	p.mu.Lock()
	if p.broken {
		p.mu.Unlock()
		return nil, errPipelineClosed
	}
	p.queue = append(p.queue, f)
	if n := len(args.Entries); n > 0 {
		p.sent = args.Entries[n-1].Index
	}
	p.mu.Unlock()
	p.t.leads(args.Term)
	// Called by one goroutine, so that requests go out in the order of the queue.
	p.t.startAppend(p.id, p.node, args, resp, func(err error) { p.complete(f, err) })
	return f, nil
}

// complete marks one answer and passes on all that have become first in line.
func (p *pipeline) complete(f *appendFuture, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		f.err = err
		*f.resp = raft.AppendEntriesResponse{} // not a Success: the library gives the pipeline up
	}
	f.ready = true
	close(f.wait)
	for len(p.queue) > 0 && p.queue[0].ready && !p.broken {
		if len(p.done) == cap(p.done)-1 {
			p.broken = true
			return
		}
		p.done <- p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		<-p.slots
	}
	if len(p.queue) == 0 && !p.broken && p.t.behind(p.sent) {
		p.finishLocked()
	}
}

// behind reports whether another whole request could follow the entry at an index. A pipeline whose requests are all answered and that
// is behind is one that the library does not feed: it sends one request for each time that entries are appended, or half a second
// to a second, and what a slow follower has left in the log is more than one. Without a pipeline it sends until nothing is left.
func (t *Transport) behind(sent uint64) bool {
	i := t.instance.Load()
	return sent > 0 && i != nil && i.LastIndex() >= sent+i.perAppend
}

// finishLocked gives the answer after which the library gives the pipeline up: no Success, of no term.
func (p *pipeline) finishLocked() {
	if p.over {
		return
	}
	p.over, p.broken = true, true
	last := &appendFuture{start: time.Now(), req: &raft.AppendEntriesRequest{}, resp: &raft.AppendEntriesResponse{},
		err: errPipelineClosed, ready: true, wait: make(chan struct{})}
	close(last.wait)
	p.done <- last // there is room: it is the last place, and taken once
}

// Consumer is the channel of answers, in the order of the requests.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.done }

// Close releases a blocked AppendEntries, and whoever still reads the answers. Those that come later are dropped with the
// pipeline.
func (p *pipeline) Close() error {
	p.close()
	return nil
}

// end closes the pipeline. The library stops its reader of the answers before it closes a pipeline, but for one case: the
// sender was parked at a log that cannot be read, and ends without a word (Instance.Park). The reader would wait for ever
// then, and the instance, whose goroutines are all waited for, would not stop. So the last answer is one that ends it.
func (p *pipeline) end() {
	close(p.closed)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken = true
	p.finishLocked()
}

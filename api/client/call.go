package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// call carries one operation out, which is a method of a gRPC service: rounds over all endpoints until one gives a final answer.
// Between rounds it waits a moment. It begins another round only when a node answered in the last one (an election under way, for
// example) or one hung. Where nobody listens at all, waiting would only delay the error.
func call[S, Q, A any](ctx context.Context, c *Client, op, subject string, service func(grpc.ClientConnInterface) S,
	method func(S, context.Context, *Q, ...grpc.CallOption) (*A, error), request *Q) (*A, error) {
	return callFor(ctx, c, c.config.Patience, c.config.AttemptTimeout, op, subject, service, method, request)
}

// callFor is call with another patience, and another bound for an attempt.
func callFor[S, Q, A any](ctx context.Context, c *Client, patience, attemptTimeout time.Duration, op, subject string, service func(grpc.ClientConnInterface) S,
	method func(S, context.Context, *Q, ...grpc.CallOption) (*A, error), request *Q) (*A, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errPatience)
	defer cancel()
	if err := c.settle(ctx, op, subject); err != nil {
		return nil, err
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		r := &round{client: c, op: op, subject: subject, tried: map[int]bool{}}
		for at, ok := r.next(); ok; at, ok = r.next() {
			n, err := c.enter(at)
			if err != nil {
				return nil, storage.E(op, storage.KindCanceled, subject, err)
			}
			begun := time.Now()
			attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
			answer, err := method(service(n.conn), attempt, request)
			cancel()
			c.leave(at, n, err, time.Since(begun))
			if r.final(ctx, at, n, err) {
				return answer, r.err
			}
		}
		if !r.hopeful {
			return nil, r.failure()
		}
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errPatience) {
				return nil, storage.E(op, storage.KindCanceled, subject, ctx.Err())
			}
			return nil, r.failure()
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// errPatience is why an operation's context ended when the caller's did not.
var errPatience = errors.New("the client's patience ended")

// enter returns the endpoint at that index, for one attempt; leave ends it.
func (c *Client) enter(at int) (*node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("the client was closed")
	}
	c.nodes[at].users++
	return c.nodes[at], nil
}

// longWithout is how long an attempt has no answer until its connection is not used for another.
const longWithout = time.Second

// leave ends an attempt at a node. If it had no answer for long, the next attempt gets another connection. When a network was cut,
// the kernel sends lost bytes again only after a pause that may be as long as the cut, and every later request on the same
// connection waits behind them.
func (c *Client) leave(at int, n *node, err error, took time.Duration) {
	unanswered := !api.Answered(err) && storage.KindOf(api.ErrorFromStatus(err, "", "")) == storage.KindCanceled &&
		took >= min(longWithout, c.config.AttemptTimeout)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return // Close has ended all connections
	}
	if n.users--; unanswered && !n.left {
		c.replaceLocked(at, n.endpoint)
	}
	c.closeLeftLocked(n)
}

// round is one pass over the endpoints. It is used by one goroutine.
type round struct {
	client      *Client
	op, subject string
	tried       map[int]bool
	hint        int // index + 1 of the endpoint that a node named; 0: none
	hopeful     bool
	problems    []error // one an endpoint
	strange     int     // how many of them are that it belongs to another cluster
	err         error   // the outcome, set by final
}

// next returns the endpoint to try: the one that was hinted at, then the one that answered last, then all in order.
func (r *round) next() (int, bool) {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	if at := r.hint - 1; at >= 0 && !r.tried[at] {
		r.tried[at] = true
		return at, true
	}
	for i := range r.client.nodes {
		at := (r.client.first + i) % len(r.client.nodes)
		if !r.tried[at] {
			r.tried[at] = true
			return at, true
		}
	}
	return 0, false
}

// final looks at an attempt's error and reports whether the operation is over, with r.err as its outcome.
func (r *round) final(ctx context.Context, at int, n *node, err error) bool {
	if err == nil {
		r.client.prefer(at)
		return true
	}
	if strange := (*WrongClusterError)(nil); errors.As(err, &strange) {
		r.strange++
		r.problems = append(r.problems, strange)
		return false
	}
	answered := api.Answered(err)
	failure := api.ErrorFromStatus(err, r.op, r.subject)
	problem := storage.Cause(failure)
	switch kind := storage.KindOf(failure); {
	case kind == storage.KindNotLeader, kind == storage.KindUnavailable && answered:
		r.hopeful = true
	case kind == storage.KindUnavailable: // no connection
	case kind == storage.KindCanceled && ctx.Err() == nil: // this attempt's time, not the operation's
		r.hopeful = true
		problem = errors.New("no answer in time")
	case kind == storage.KindCanceled && errors.Is(context.Cause(ctx), errPatience):
		r.problems = append(r.problems, fmt.Errorf("%s: no answer in time", n.endpoint))
		r.err = r.failure()
		return true
	case kind == storage.KindUnsupported && !answered:
		r.err = storage.E(r.op, kind, r.subject, fmt.Errorf("the node at %s runs an earlier release, which does not know the request: start it with the release "+
			"of the others, which finishes the upgrade (%w)", n.endpoint, problem))
		return true
	default:
		if answered {
			r.client.prefer(at)
		}
		r.err = failure
		return true
	}
	r.problems = append(r.problems, fmt.Errorf("%s: %s", n.endpoint, readable(problem)))
	var hint api.LeaderHint
	if errors.As(failure, &hint) {
		r.hint = r.client.follow(hint.LeaderEndpoint()) + 1
	}
	return false
}

// failure is the outcome when nobody gave a final answer: it says what became of every endpoint.
func (r *round) failure() error {
	texts := api.Each(r.problems, error.Error)
	if len(texts) == 0 {
		texts = append(texts, "no endpoint answered in time")
	}
	kind := storage.KindUnavailable
	if r.strange > 0 && r.strange == len(r.problems) {
		kind = storage.KindConflict
	}
	return storage.E(r.op, kind, r.subject, errors.New(strings.Join(texts, "; ")))
}

// readable takes gRPC's wrapping off a connection's error: it may appear several times in one. When a server accepts the
// connection and does not speak in time, gRPC reports only that it closed the connection itself while it waited for the preface.
// When the other side ended the connection, the cause is reported as it is.
func readable(err error) string {
	text := err.Error()
	const preface = "error reading server preface: "
	waited := strings.Contains(text, preface)
	for _, marker := range []string{"Error while dialing: ", "authentication handshake failed: ", preface} {
		if at := strings.LastIndex(text, marker); at >= 0 {
			text = strings.TrimSuffix(text[at+len(marker):], "\"")
		}
	}
	switch {
	case waited && (strings.Contains(text, net.ErrClosed.Error()) || strings.Contains(text, os.ErrDeadlineExceeded.Error())):
		return "it takes connections and gives no answer: the process there hangs or is stopped, or is no storaged"
	case text == context.DeadlineExceeded.Error():
		return "no answer in time"
	}
	return text
}

// prefer makes the endpoint the first to be asked.
func (c *Client) prefer(at int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = at
}

// follow returns the index of an endpoint that a node named, or -1 when it is malformed or too many were named.
func (c *Client) follow(endpoint string) int {
	endpoint, err := ParseEndpoint(endpoint)
	if err != nil {
		return -1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return -1
	}
	if at := c.indexLocked(endpoint); at >= 0 || len(c.nodes) >= len(c.config.Endpoints)+len(c.learned)+maxHints {
		return at
	}
	at, err := c.addLocked(endpoint)
	if err != nil {
		return -1
	}
	return at
}

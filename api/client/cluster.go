package client

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// WrongClusterError says that an endpoint belongs to another cluster than the one that is meant: it was asked for nothing.
type WrongClusterError struct {
	Endpoint string
	Want     string // the id that is meant, or its beginning
	Found    storage.ClusterID
}

// Error implements error.
func (e *WrongClusterError) Error() string {
	return fmt.Sprintf("%s belongs to cluster %v, and cluster %v is meant: take the endpoint out, or name the cluster that you mean (--cluster)",
		e.Endpoint, e.Found, e.Want)
}

// otherAnswers is how much longer than for the first answer is waited for the others, before the first request.
const otherAnswers = 250 * time.Millisecond

// Cluster returns the cluster that is asked; zero as long as it is not known.
func (c *Client) Cluster() storage.ClusterID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pinned
}

// Pin says which cluster is meant, for a client that was made without knowing it. KindConflict: it has another one already.
func (c *Client) Pin(id storage.ClusterID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.pinned.IsZero() && c.pinned != id {
		return storage.E("ask", storage.KindConflict, "cluster "+id.String(), fmt.Errorf("the endpoints belong to cluster %v", c.pinned))
	}
	c.pinned = id
	return nil
}

// withCluster is around every request to an endpoint: it says which cluster is meant, and takes no answer of another one.
func (c *Client) withCluster(endpoint string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if ctx.Value(probe{}) != nil {
			return invoke(ctx, method, request, answer, conn, opts...)
		}
		ctx, mark := c.meant(ctx)
		var header metadata.MD
		err := invoke(ctx, method, request, answer, conn, append(opts, grpc.Header(&header))...)
		if wrong := c.checkAnswer(endpoint, mark, header); wrong != nil {
			return wrong
		}
		return err
	}
}

// streamWithCluster is withCluster for requests that are answered in parts. It waits for the first of them.
func (c *Client) streamWithCluster(endpoint string) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, begin grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		ctx, mark := c.meant(ctx)
		stream, err := begin(ctx, desc, conn, method, opts...)
		if err != nil {
			return nil, err
		}
		return &checkedStream{ClientStream: stream, check: func(header metadata.MD) error { return c.checkAnswer(endpoint, mark, header) }}, nil
	}
}

// checkedStream checks whose answers it has before it gives the first one.
type checkedStream struct {
	grpc.ClientStream
	check   func(metadata.MD) error
	checked bool // owned by the one goroutine that receives
}

// RecvMsg implements grpc.ClientStream.
func (s *checkedStream) RecvMsg(m any) error {
	if !s.checked {
		header, err := s.Header()
		if err == nil {
			err = s.check(header)
		}
		if err != nil {
			return err
		}
		s.checked = true
	}
	return s.ClientStream.RecvMsg(m)
}

// meant returns the context of a request, and the cluster that it names; empty: none.
func (c *Client) meant(ctx context.Context) (context.Context, string) {
	meant, mark := c.Cluster(), api.ClusterMeant(ctx)
	if !meant.IsZero() && (mark == "" || api.IsCluster(meant, mark)) {
		mark = meant.String()
	}
	if mark != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, api.ClusterHeader, mark)
	}
	return ctx, mark
}

// checkAnswer returns a *WrongClusterError if an answer is of another cluster than is meant.
func (c *Client) checkAnswer(endpoint, mark string, header metadata.MD) error {
	found, ok := clusterOf(header)
	if !ok { // it has none yet, or did not answer
		return nil
	}
	if mark != "" && !api.IsCluster(found, mark) {
		return &WrongClusterError{Endpoint: endpoint, Want: mark, Found: found}
	}
	if c.Pin(found) != nil {
		return &WrongClusterError{Endpoint: endpoint, Want: c.Cluster().String(), Found: found}
	}
	return nil
}

func clusterOf(header metadata.MD) (storage.ClusterID, bool) {
	values := header.Get(api.ClusterHeader)
	if len(values) != 1 {
		return storage.ClusterID{}, false
	}
	id, _ := storage.ParseClusterID(values[0])
	return id, !id.IsZero()
}

// settle finds out, before the first request, which cluster several endpoints belong to. If one of them belonged to a second,
// empty cluster, a deletion or a detach would succeed there and change nothing. It waits for the first answer, and a moment
// longer for the others. KindConflict: they belong to different ones. An endpoint that answers later, and is of another
// cluster, is found out then.
func (c *Client) settle(ctx context.Context, op, subject string) error {
	c.mu.Lock()
	nodes, known := append([]*node(nil), c.nodes...), !c.pinned.IsZero()
	c.mu.Unlock()
	if known || len(nodes) < 2 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, probe{}, true), c.config.AttemptTimeout)
	defer cancel()
	answers := make(chan found, len(nodes)) // a value of each node
	for _, n := range nodes {
		go func() {
			var header metadata.MD
			_, _ = pb.NewClusterClient(n.conn).Version(ctx, &pb.GetVersionRequest{}, grpc.Header(&header)) // the header says it all
			id, _ := clusterOf(header)
			answers <- found{n.endpoint, id}
		}()
	}
	var first found
	var late <-chan time.Time
	for waiting := len(nodes); waiting > 0; {
		select {
		case a := <-answers:
			waiting--
			switch {
			case a.id.IsZero():
			case first.id.IsZero():
				first, late = a, time.After(otherAnswers)
			case a.id != first.id:
				return storage.E(op, storage.KindConflict, subject, fmt.Errorf("the endpoints belong to different clusters, %s to %v and "+
					"%s to %v: nothing was done; take one out, or name the cluster that you mean (--cluster)", first.endpoint, first.id,
					a.endpoint, a.id))
			}
		case <-late:
			waiting = 0
		case <-ctx.Done():
			waiting = 0
		}
	}
	if first.id.IsZero() {
		return nil
	}
	return c.Pin(first.id)
}

// found is what an endpoint has answered: its cluster, zero without an answer or a cluster.
type found struct {
	endpoint string
	id       storage.ClusterID
}

// probe marks the context of a request that only asks who is there.
type probe struct{}

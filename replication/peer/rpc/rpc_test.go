package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
)

type question struct {
	Text string `json:"text"`
}

type answer struct {
	Text string `json:"text"`
}

var (
	echo  = Method[question, answer]{Name: "echo", Number: 100, Lane: peer.Control, From: peer.Members, MaxRequestBytes: 100, MaxAnswerBytes: 50}
	order = Method[question, None]{Name: "obey", Number: 101, Lane: peer.Bulk, From: peer.Members, InHeader: true, MaxRequestBytes: 100}
)

// node returns a node that answers both methods, the second with an error for the text "no".
func node(t *testing.T) *peer.Transport {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n, err := peer.New(peer.Config{Cluster: storage.ClusterID{1}, Self: 1, Listener: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	echo.Handle(n, func(_ context.Context, from Sender, q question) (answer, error) {
		if from.Node != 1 {
			t.Errorf("asked by %+v", from)
		}
		return answer(q), nil
	})
	order.Handle(n, func(_ context.Context, _ Sender, q question) (None, error) {
		if q.Text == "no" {
			return None{}, storage.E("obey", storage.KindConflict, "x", errors.New("it will not"))
		}
		return None{}, nil
	})
	return n
}

// TestCall: requests and answers arrive, errors keep their kind, and what is too large at either end, or no JSON, is KindInvalid.
func TestCall(t *testing.T) {
	n := node(t)
	if a, err := echo.Call(t.Context(), n, 1, question{"hello"}); err != nil || a.Text != "hello" {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := order.Call(t.Context(), n, 1, question{"yes"}); err != nil {
		t.Error(err)
	}
	if _, err := order.Call(t.Context(), n, 1, question{"no"}); !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), "it will not") {
		t.Errorf("a refusal: %v", err)
	}
	for what, text := range map[string]string{"request": strings.Repeat("x", 101), "answer": strings.Repeat("x", 60)} {
		if a, err := echo.Call(t.Context(), n, 1, question{text}); !errors.Is(err, storage.ErrInvalid) || a.Text != "" {
			t.Errorf("a %s that is too large: %+v, %v", what, a, err)
		}
	}
	for _, m := range []peer.Method{echo.Number, order.Number} {
		for _, bad := range []string{"", "{", strings.Repeat(" ", 101)} {
			if _, err := n.Call(t.Context(), 1, peer.Control, &peer.Request{Method: m, Header: []byte(bad), Payload: [][]byte{[]byte(bad)}}); !errors.Is(err, storage.ErrInvalid) {
				t.Errorf("method %d with %d bytes: %v", m, len(bad), err)
			}
		}
	}
}

// hostile answers with the bytes that it is.
type hostile string

func (h hostile) Call(context.Context, storage.NodeID, peer.Lane, *peer.Request) (*peer.Response, error) {
	return &peer.Response{Payload: []byte(h)}, nil
}

// TestAnswersAreBounded: the one who asks looks at the length before it decodes, and an answer without bytes is one of None only.
func TestAnswersAreBounded(t *testing.T) {
	large, _ := json.Marshal(answer{strings.Repeat("x", 60)})
	for _, bad := range []string{"", "{", string(large)} {
		if a, err := echo.Call(t.Context(), hostile(bad), 1, question{}); !errors.Is(err, storage.ErrInvalid) || a.Text != "" {
			t.Errorf("%q: %+v, %v", bad, a, err)
		}
	}
	if _, err := order.Call(t.Context(), hostile(""), 1, question{}); err != nil {
		t.Error(err)
	}
}

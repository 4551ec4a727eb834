package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

// damaged is request with a bit of the payload flipped on its way.
// damagedLarge is the same of a payload that is received where a Layout wants it.
func damagedLarge(id uint64) []byte {
	b := request(methodEcho, 1, id, []byte("header"), make([]byte, layoutBytes))
	b[len(b)-layoutBytes/2] ^= 4
	return b
}

func damaged(id uint64) []byte {
	b := request(methodEcho, 1, id, []byte("header"), []byte("payload"))
	b[len(b)-3] ^= 4
	return b
}

// TestDamagedRequestIsRefused guards I1 on the way between nodes: a payload that is not the one that was sent reaches no
// handler. The sender is told that it was refused, the connection goes on, and is cut at the third within a minute (tried:
// without verifyPayload in readRequests the handler gets the damaged bytes).
func TestDamagedRequestIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		var handled atomic.Int64
		var logged bytes.Buffer
		m := newMesh(t, simulated(network), 2, func(c *Config) {
			if c.Self == 2 {
				c.Logger = slog.New(slog.NewTextHandler(&logged, nil))
			}
		}, func(tr *Transport) {
			terms := termsOf(methodEcho, Concurrent)
			terms.Layout = func(_ []byte, n int) [][]byte { return [][]byte{make([]byte, n/2), make([]byte, n-n/2)} }
			tr.Handle(methodEcho, terms, func(in *Inbound) {
				handled.Add(1)
				if string(in.Payload) != "payload" {
					t.Errorf("the handler got %q", in.Payload)
				}
				in.Reply(nil, nil)
			})
		})
		lanes := rawSet(t, network, m.addrs[2], 1)
		keepPinging(lanes[Control])
		exchange := func(frame []byte) (frameHeader, []byte, error) {
			if _, err := lanes[Data].Write(frame); err != nil {
				return frameHeader{}, nil, err
			}
			var b [frameHeaderBytes]byte
			if _, err := io.ReadFull(lanes[Data], b[:]); err != nil {
				return frameHeader{}, nil, err
			}
			h, err := parseFrame(b[:])
			if err != nil {
				return h, nil, err
			}
			body := make([]byte, h.headerBytes+h.payloadBytes)
			_, err = io.ReadFull(lanes[Data], body)
			return h, body, err
		}
		refused := func(id uint64, damaged func(id uint64) []byte) {
			t.Helper()
			h, body, err := exchange(damaged(id))
			if err != nil || h.kind != kindError || h.id != id {
				t.Fatalf("a damaged request is answered with %+v: %v", h, err)
			}
			if err := parseError(2, body); !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "damaged on its way") {
				t.Fatalf("a damaged request is refused with %v", err)
			}
		}
		refused(1, damaged)
		refused(2, damagedLarge)
		if h, _, err := exchange(request(methodEcho, 1, 3, []byte("header"), []byte("payload"))); err != nil || h.kind != kindResponse {
			t.Fatalf("the sound one after it: %+v, %v", h, err)
		}
		time.Sleep(damageWindow + time.Second)
		refused(4, damagedLarge) // the first two are long ago
		refused(5, damaged)
		if _, _, err := exchange(damaged(6)); err == nil {
			if _, _, err = exchange(request(methodEcho, 1, 7, nil, nil)); err == nil {
				t.Error("the connection is there after the third damaged frame within a minute")
			}
		}
		if n := handled.Load(); n != 1 {
			t.Errorf("%d requests were handled, want the sound one", n)
		}
		if n := m.nodes[2].metrics.damaged.Load(); n != 5 {
			t.Errorf("%d damaged frames were counted, want 5", n)
		}
		time.Sleep(time.Second)
		if s := logged.String(); strings.Count(s, "damaged on its way and is refused") != 5 || !strings.Contains(s, "node=9") {
			t.Errorf("the log does not name the peer for each:\n%s", s)
		}
	})
}

// TestDamagedAnswerIsNoAnswer: an answer whose payload is damaged is an error for the caller, of unknown outcome.
func TestDamagedAnswerIsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		l, err := network.Machine("raw").Listen(":1")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { <-time.After(time.Millisecond) }()
		defer l.Close()
		go serveRaw(l, func(h frameHeader) []byte {
			return resealed(damaged(h.id), func(b []byte) { b[4] = byte(kindResponse) })
		})
		tr, err := New(Config{Cluster: testCluster, Self: 1, Dial: network.Machine("n1").Dial,
			Resolve: func(storage.NodeID) (string, bool) { return "raw:1", true }})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		_, err = tr.Call(context.Background(), 2, Data, &Request{Method: 1})
		if se, ok := sentError(err); !ok || !se.Sent || !errors.Is(err, errPayloadCRC) {
			t.Errorf("a damaged answer: %v, want KindUnavailable with an unknown outcome", err)
		}
		if !tr.Connected(2) {
			t.Error("one damaged answer has ended the connection")
		}
	})
}

// TestReplyDamagedCounts: a handler that finds the payload's own checksums wrong has the peer counted as well.
func TestReplyDamagedCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 2, nil, func(tr *Transport) {
			tr.Handle(methodPropose, termsOf(methodPropose, Concurrent), func(in *Inbound) {
				in.ReplyDamaged(storage.E("verify", storage.KindCorrupt, "payload", nil))
			})
		})
		for i := range maxDamagedFrames {
			_, err := m.nodes[1].Call(context.Background(), 2, Data, &Request{Method: methodPropose, Payload: [][]byte{[]byte("x")}, OwnSums: true})
			if want := storage.ErrCorrupt; i < maxDamagedFrames-1 && !errors.Is(err, want) {
				t.Errorf("call %d: %v, want %v", i, err, want)
			}
		}
		time.Sleep(time.Second)
		if m.nodes[2].metrics.damaged.Load() != maxDamagedFrames || m.nodes[1].metrics.lost.Load() != 1 {
			t.Errorf("%d frames counted, %d connections cut", m.nodes[2].metrics.damaged.Load(), m.nodes[1].metrics.lost.Load())
		}
	})
}

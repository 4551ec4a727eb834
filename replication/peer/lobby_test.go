package peer

import (
	"context"
	"errors"
	"net"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestWithoutRoom: a node that waits for room says so to whoever calls it, and takes calls when it has begun, at the same listener.
//
// Line: the code in answerHello; without it the caller is taken in, and nobody answers.
func TestWithoutRoom(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	caller, err := New(Config{Cluster: testCluster, Self: 1, Resolve: func(storage.NodeID) (string, bool) { return l.Addr().String(), true }})
	if err != nil {
		t.Fatal(err)
	}
	defer caller.Close()
	waiting, err := New(Config{Cluster: testCluster, Self: 2, Speaker: Speaker{Address: l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- waiting.Lobby(ctx, l.(LobbyListener)) }()
	for range 3 {
		_, err = caller.Call(t.Context(), 2, Control, &Request{Method: methodEcho})
		if !errors.Is(err, ErrWithoutRoom) || !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("called: %v", err)
		}
	}
	if w := caller.Look(2); !errors.Is(w.Err, ErrWithoutRoom) || w.Reached || w.Connected {
		t.Errorf("looks like %+v", w)
	}
	leave()
	if err := errors.Join(<-left, waiting.Close()); err != nil {
		t.Fatal(err)
	}
	begun, err := New(Config{Cluster: testCluster, Self: 2, Listener: l, Speaker: Speaker{Address: l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	conformHandlers(begun)
	ended := make(chan error, 1)
	go func() { ended <- begun.Run(context.Background()) }()
	if err := begun.Lobby(t.Context(), l.(LobbyListener)); !errors.Is(err, storage.ErrInternal) {
		t.Errorf("a lobby beside the node: %v", err)
	}
	reaches(t, caller, 2, caller.cfg.BackoffMax*10)
	if err := errors.Join(begun.Close(), <-ended); err != nil {
		t.Error(err)
	}
}

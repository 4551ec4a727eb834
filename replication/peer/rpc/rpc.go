// Package rpc is for methods of peers whose requests and answers are JSON. A Method is declared once, with its number, its lane
// and its limits, and used at both ends: Handle registers it at a node, Call asks one.
//
// What it keeps true: neither end decodes a message that is larger than the method allows. Every request is answered once; if the
// handler returned an error, the answer is an error of the same kind.
package rpc

import (
	"context"
	"encoding/json"
	"fmt"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
)

// Method is a method with requests Q and answers A. All fields but InHeader are required.
type Method[Q, A any] struct {
	Name   string // for errors: what is asked for
	Number peer.Method
	Lane   peer.Lane
	From   peer.Audience // who may call it
	// InHeader says that a request travels in the frame's header, as orders always have.
	InHeader bool
	// MaxRequestBytes and MaxAnswerBytes bound what arrives, before it is decoded.
	MaxRequestBytes, MaxAnswerBytes int
}

// None is the answer of methods that have none to give. It has no bytes.
type None struct{}

// Peers is the way to other nodes. *peer.Transport implements it.
type Peers interface {
	Call(ctx context.Context, to storage.NodeID, lane peer.Lane, req *peer.Request) (*peer.Response, error)
}

// Sender is who asks.
type Sender struct {
	Node    storage.NodeID // 0: a gateway of a host, or a node without an id
	Address string         // without a port; empty for this node itself
}

// Handle registers the method. To be called before the peers run. serve may be called concurrently; its context ends when nobody
// can hear the answer.
func (m Method[Q, A]) Handle(peers *peer.Transport, serve func(ctx context.Context, from Sender, q Q) (A, error)) {
	peers.Handle(m.Number, peer.Terms{From: m.From, Order: peer.Concurrent}, func(in *peer.Inbound) {
		body, err := m.answer(in, serve)
		in.Answer(nil, body, err)
	})
}

func (m Method[Q, A]) answer(in *peer.Inbound, serve func(context.Context, Sender, Q) (A, error)) ([]byte, error) {
	var q Q
	body := in.Payload
	if m.InHeader {
		body = in.Header
	}
	if err := m.decode(body, m.MaxRequestBytes, &q); err != nil {
		return nil, err
	}
	a, err := serve(in.Context(), Sender{Node: in.From, Address: in.RemoteAddr()}, q)
	if err != nil {
		return nil, err
	}
	return m.encode(a, m.MaxAnswerBytes)
}

// Call asks a node, which may be this one. Errors are those of the handler, of peer.Transport.Call, and KindInvalid for a request or
// an answer that is too large or that cannot be decoded.
func (m Method[Q, A]) Call(ctx context.Context, peers Peers, to storage.NodeID, q Q) (a A, err error) {
	body, err := m.encode(q, m.MaxRequestBytes)
	if err != nil {
		return a, err
	}
	req := &peer.Request{Method: m.Number, Payload: [][]byte{body}}
	if m.InHeader {
		req.Header, req.Payload = body, nil
	}
	resp, err := peers.Call(ctx, to, m.Lane, req)
	if err != nil {
		return a, err
	}
	defer resp.Release()
	return a, m.decode(resp.Payload, m.MaxAnswerBytes, &a)
}

func (m Method[Q, A]) encode(v any, limit int) ([]byte, error) {
	if _, none := v.(None); none {
		return nil, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, storage.E(m.Name, storage.KindInternal, fmt.Sprintf("%T", v), err)
	}
	return b, m.bound(b, limit, v)
}

func (m Method[Q, A]) decode(b []byte, limit int, v any) error {
	if err := m.bound(b, limit, v); err != nil {
		return err
	}
	if _, none := v.(*None); none {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return storage.E(m.Name, storage.KindInvalid, fmt.Sprintf("%T", v), err)
	}
	return nil
}

func (m Method[Q, A]) bound(b []byte, limit int, v any) error {
	if len(b) > limit {
		return storage.E(m.Name, storage.KindInvalid, fmt.Sprintf("%T", v), fmt.Errorf("%d bytes, at most %d are allowed", len(b), limit))
	}
	return nil
}

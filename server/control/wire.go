package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// Limits of what comes from other nodes, in bytes.
const (
	maxReportBytes  = 8 << 20
	maxRequestBytes = catalog.MaxCommandBytes
	maxJoinBytes    = 2 * catalog.MaxCommandBytes // a command in base64
	maxReplyBytes   = 64 << 20
)

// RemovedError says that a node was removed from the cluster, which is for ever. It is the cause of an error of
// KindPermission: every node that knows of it refuses what the removed one asks with it, and Run ends with it there.
type RemovedError struct {
	Node storage.NodeID
	Name string
}

// Error implements error.
func (e *RemovedError) Error() string {
	return fmt.Sprintf("node %s (%s) was removed from the cluster, which gives its id to nobody again; to come back as a new node "+
		"start storaged with an empty data directory and --join HOST", e.Node, e.Name)
}

func notLeader(leader storage.NodeID) error {
	return op.NotLeader("ask the catalog", "catalog", storage.CatalogGroup, leader)
}

// readRequest is the body of MethodRead.
type readRequest struct {
	Reports bool `json:"reports,omitempty"` // otherwise: an index
	// Standing asks for nothing: any node answers, unless it knows that the one that asks was removed.
	Standing bool `json:"standing,omitempty"`
}

// joinRequest is the body of MethodJoin. Builds before version 6 sent the command alone, and take nothing else.
type joinRequest struct {
	Node  []byte `json:"node"`  // an encoded catalog.AddNode
	Knows int    `json:"knows"` // the newest version of the cluster that the node knows
}

func decodeJoin(body []byte) (add catalog.AddNode, knows int, err error) {
	r := joinRequest{Node: body, Knows: catalog.BaseVersion}
	if len(body) > 0 && body[0] == '{' {
		if err := decodeRequest(body, maxJoinBytes, &r); err != nil {
			return add, 0, err
		}
	}
	cmd, err := catalog.Decode(r.Node)
	if err != nil {
		return add, 0, err
	}
	add, ok := cmd.(catalog.AddNode)
	if !ok {
		return add, 0, storage.E("join", storage.KindInvalid, "", errors.New("the request is no description of a node"))
	}
	return add, r.Knows, nil
}

// JoinResponse tells a new node who it is.
type JoinResponse struct {
	Cluster          string                    `json:"cluster"`
	Node             storage.NodeID            `json:"node"`
	HeartbeatTimeout time.Duration             `json:"heartbeat_timeout_ns"`
	Addrs            map[storage.NodeID]string `json:"addrs"` // peer addresses of all nodes
	// Recovery is the one that the cluster follows, 0: none. A build that does not know it is refused by all nodes then.
	Recovery uint32 `json:"recovery,omitempty"`
}

// reply is the answer to every method: Err, or what the method answers.
type reply struct {
	Err    *catalog.SentError `json:"err,omitempty"`
	Leader storage.NodeID     `json:"leader,omitempty"` // with Err of KindNotLeader

	Removed *RemovedError `json:"removed,omitempty"` // with Err of KindPermission

	Result  *catalog.Result                    `json:"result,omitempty"`
	Index   uint64                             `json:"index,omitempty"`
	Reports map[storage.NodeID]placement.Heard `json:"reports,omitempty"`
	Join    *JoinResponse                      `json:"join,omitempty"`
}

// failed makes a reply of an error.
func failed(err error) reply {
	var nl *op.NotLeaderError
	if errors.As(err, &nl) {
		return reply{Err: &catalog.SentError{Op: "ask the catalog", Kind: storage.KindNotLeader, Text: nl.Error()}, Leader: nl.Leader}
	}
	var e *storage.Error
	if !errors.As(err, &e) {
		e = storage.E("ask the catalog", storage.KindOf(err), "", err)
	}
	r := reply{Err: catalog.Send(e)}
	errors.As(err, &r.Removed)
	return r
}

// err returns the error that a reply carries.
func (r *reply) err() error {
	if r.Err == nil {
		return nil
	}
	e := r.Err.Received()
	switch {
	case e.Kind == storage.KindNotLeader:
		return notLeader(r.Leader)
	case r.Err.Kind == storage.KindNone:
		return storage.E("ask the catalog", storage.KindInternal, r.Err.Subject, errors.New("an error of kind none: "+r.Err.Text))
	case r.Removed != nil:
		e.Err = r.Removed
	}
	return e
}

func encodeReply(r reply) []byte {
	b, err := json.Marshal(r)
	if err == nil && len(b) > maxReplyBytes {
		err = fmt.Errorf("the answer has %d bytes, above the limit of %d", len(b), maxReplyBytes)
	}
	if err != nil {
		b, _ = json.Marshal(failed(storage.E("answer", storage.KindInternal, "", err)))
	}
	return b
}

func decodeReply(b []byte) (reply, error) {
	var r reply
	if len(b) > maxReplyBytes {
		return r, storage.E("ask the catalog", storage.KindInvalid, "", fmt.Errorf("an answer of %d bytes", len(b)))
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, storage.E("ask the catalog", storage.KindInvalid, "", err)
	}
	return r, r.err()
}

// decodeRequest decodes what another node sent, within a limit.
func decodeRequest(b []byte, limit int, v any) error {
	if len(b) > limit {
		return storage.E("decode request", storage.KindInvalid, "", errors.New(strconv.Itoa(len(b))+" bytes, above the limit"))
	}
	if err := json.Unmarshal(b, v); err != nil {
		return storage.E("decode request", storage.KindInvalid, "", err)
	}
	return nil
}

package catalog

import (
	"encoding/json"
	"errors"

	storage "github.com/storaged/storaged"
)

// Result is the answer to one command.
type Result struct {
	// Index is the log index the command was applied at; a copy of the catalog that has reached it shows the effect.
	Index uint64 `json:"index"`
	// Err is why the command was refused, nil if it was applied; a refused command changed nothing.
	Err *storage.Error `json:"-"`

	Node       storage.NodeID      `json:"node,omitempty"`       // AddNode, UpdateNode, SetNodeState
	Group      storage.GroupID     `json:"group,omitempty"`      // the commands on groups and replicas
	Replica    storage.ReplicaKey  `json:"replica,omitzero"`     // AddGroup, PlanReplica
	Volume     *storage.Volume     `json:"volume,omitempty"`     // the commands on volumes, attachments, and OpenSession
	Attachment *storage.Attachment `json:"attachment,omitempty"` // Attach
	Session    *Session            `json:"session,omitempty"`    // OpenSession
	// Predecessors are what OpenSession and Detach want closed in every group first, by ascending id.
	Predecessors []Session `json:"predecessors,omitempty"`
}

// resultJSON adds the error to the encoded Result. Causes travel as text.
type resultJSON struct {
	resultFields
	Err *SentError `json:"err,omitempty"`
}

type resultFields Result

// SentError is an error on its way to another node. Its cause travels as text.
type SentError struct {
	Op      string       `json:"op"`
	Kind    storage.Kind `json:"kind"`
	Subject string       `json:"subject,omitempty"`
	Text    string       `json:"text,omitempty"`
}

// Send returns an error as it travels.
func Send(e *storage.Error) *SentError {
	w := &SentError{Op: e.Op, Kind: e.Kind, Subject: e.Subject}
	if e.Err != nil {
		w.Text = e.Err.Error()
	}
	return w
}

// Received returns the error that was sent.
func (w *SentError) Received() *storage.Error {
	e := storage.E(w.Op, storage.FailureOf(uint64(w.Kind)), w.Subject, nil)
	if w.Text != "" {
		e.Err = errors.New(w.Text)
	}
	return e
}

// MarshalJSON implements json.Marshaler; the error's cause becomes text.
func (r Result) MarshalJSON() ([]byte, error) {
	w := resultJSON{resultFields: resultFields(r)}
	if r.Err != nil {
		w.Err = Send(r.Err)
	}
	return json.Marshal(w)
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *Result) UnmarshalJSON(b []byte) error {
	var w resultJSON
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*r = Result(w.resultFields)
	if w.Err != nil {
		r.Err = w.Err.Received()
	}
	return nil
}

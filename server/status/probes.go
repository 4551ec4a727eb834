package status

import (
	"encoding/json"
	"net/http"
)

// RegisterProbes registers the probes of orchestrators. /livez says that the process answers, and no more. /healthz also shows, as
// warnings, faults that a restart of this node would not repair, and stays ok. When a node is not ready, /readyz says whether its
// cluster is being made, so that whoever waits for that need not look for a fault.
func (v *View) RegisterProbes(mux *http.ServeMux) {
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { writeProblems(w, verdict{}) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeProblems(w, verdict{Problems: v.Unhealthy(), Warnings: v.Warnings()})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		unready := v.Unready()
		writeProblems(w, verdict{Problems: unready, Starting: len(unready) > 0 && v.Starting()})
	})
}

// verdict is an answer of /healthz and /readyz.
type verdict struct {
	OK       bool      `json:"ok"`
	Starting bool      `json:"starting,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
	Warnings []Problem `json:"warnings,omitempty"`
}

func writeProblems(w http.ResponseWriter, v verdict) {
	w.Header().Set("Content-Type", "application/json")
	v.OK = len(v.Problems) == 0
	if !v.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(v) // the client has gone if this fails
}

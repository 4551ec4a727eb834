package status

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/storaged/storaged/server/catalog"
)

// probe asks for one of the probes.
func probe(t *testing.T, v *View, path string) (code int, got verdict) {
	t.Helper()
	mux, answer := http.NewServeMux(), httptest.NewRecorder()
	v.RegisterProbes(mux)
	mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
	if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil {
		t.Errorf("%s: %s: %v", path, answer.Body, err)
	}
	return answer.Code, got
}

// TestProbes: /livez answers ok whatever is broken, so that nothing is restarted which a restart does not mend; /healthz and
// /readyz say what is.
func TestProbes(t *testing.T) {
	w, v := newWorld(t)
	w.failed, w.refusals = "input/output error", []string{"the NBD port is full"}
	for path, want := range map[string]int{"/livez": http.StatusOK, "/healthz": http.StatusServiceUnavailable, "/readyz": http.StatusServiceUnavailable} {
		if code, got := probe(t, v, path); code != want || got.OK != (want == http.StatusOK) || (len(got.Problems) == 0) != got.OK {
			t.Errorf("%s: %d %+v, want %d", path, code, got, want)
		}
	}
	w.failed = ""
	if code, got := probe(t, v, "/healthz"); code != http.StatusOK || !got.OK || len(got.Warnings) != 1 {
		t.Errorf("with a warning: %d %+v", code, got)
	}
}

// TestReadyzSaysStarting: whoever waits for a first start can tell it from a fault.
func TestReadyzSaysStarting(t *testing.T) {
	w, v := newWorld(t)
	w.Fresh.Age = catalog.NeverHeard
	if code, got := probe(t, v, "/readyz"); code != http.StatusServiceUnavailable || got.OK || got.Starting {
		t.Errorf("a node that has not heard its leader: %d %+v", code, got)
	}
	w.Fresh = catalog.Freshness{Leader: 1}
	makeGroup(w)
	if code, got := probe(t, v, "/readyz"); code != http.StatusServiceUnavailable || got.OK || !got.Starting {
		t.Errorf("while a group is made: %d %+v", code, got)
	}
}

// TestProbesBeforeTheNodeRuns: a node that has no parts yet says what it waits for, and asks none of them.
func TestProbesBeforeTheNodeRuns(t *testing.T) {
	v := &View{}
	if code, got := probe(t, v, "/healthz"); code != http.StatusOK || !got.OK {
		t.Errorf("healthz: %d %+v", code, got)
	}
	ready := func(want string, starting bool) {
		t.Helper()
		code, got := probe(t, v, "/readyz")
		if code != http.StatusServiceUnavailable || got.Starting != starting || len(got.Problems) != 1 || got.Problems[0] != (Problem{"node", want}) {
			t.Errorf("readyz: %d %+v, want %s", code, got, want)
		}
	}
	ready("it is starting or stopping", false)
	v.WaitFor("b does not answer")
	ready("it has no cluster yet and waits: b does not answer", true)
	v.WaitFor("")
	ready("it is starting or stopping", false)
}

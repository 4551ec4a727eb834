package apitest_test

import (
	"testing"
	"time"

	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
)

func TestConformance(t *testing.T) {
	apitest.Conformance(t, func(*testing.T) api.Cluster { return apitest.New(time.Now) })
}

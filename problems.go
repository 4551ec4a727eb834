package storage

import (
	"errors"
	"fmt"
)

// Problems collects what is wrong with a configuration, so that who wrote it is told of everything at once. The zero
// value holds none. It is used by one goroutine.
type Problems struct{ errs []error }

// Check adds a problem unless ok.
func (p *Problems) Check(ok bool, format string, args ...any) {
	if !ok {
		p.errs = append(p.errs, fmt.Errorf(format, args...))
	}
}

// Add adds an error, if it is one.
func (p *Problems) Add(err error) {
	if err != nil {
		p.errs = append(p.errs, err)
	}
}

// Err returns nil without problems, otherwise all of them as one error of KindInvalid.
func (p *Problems) Err(op, subject string) error {
	if len(p.errs) == 0 {
		return nil
	}
	return E(op, KindInvalid, subject, errors.Join(p.errs...))
}

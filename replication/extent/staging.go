package extent

// Staging is a manifest that is being pulled.
type Staging struct{}

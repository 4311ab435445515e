module github.com/akv-injector/akv-injector/test/harness/keyvault

go 1.26.0

require github.com/google/go-cmp v0.7.0

"""Files of others: where they lie, how they come, whether they are what they should be. No torch.

places       folders that the environment names, and the manifests in them
download     one file over https
fetching     a file that must be here: found, fetched or refused, by its hash
foreign      weights of other projects
datasets     which data sets there are, and their files
data_files   whether the files of a data set are here
"""
